-- The tables as the original regstat made them. A new database starts from the same
-- shape and takes the same upgrades as one that the original left, so that there is
-- one way to get to the newest schema.

create table if not exists {s}blobs (
    digest text primary key,
    pushed timestamp not null,
    pulled timestamp
);

create table if not exists {s}manifests (
    digest text primary key,
    pushed timestamp not null,
    pulled timestamp
);

create table if not exists {s}manifest_blob (
    manifest_digest text not null,
    blob_digest text not null,
    primary key (manifest_digest, blob_digest)
);

create table if not exists {s}tags (
    name text primary key,
    registry text not null,
    repository text not null,
    tag text,
    manifest_digest text not null,
    pushed timestamp not null,
    pulled timestamp
);

create table if not exists {s}deleted_blobs (
    digest text primary key,
    pushed timestamp not null,
    pulled timestamp,
    deleted timestamp not null
);

create table if not exists {s}deleted_manifests (
    digest text primary key,
    pushed timestamp not null,
    pulled timestamp,
    deleted timestamp not null
);

create table if not exists {s}deleted_manifest_blob (
    manifest_digest text not null,
    blob_digest text not null,
    primary key (manifest_digest, blob_digest)
);

create table if not exists {s}deleted_tags (
    name text primary key,
    registry text not null,
    repository text not null,
    tag text,
    manifest_digest text not null,
    pushed timestamp not null,
    pulled timestamp,
    deleted timestamp not null
);

create index if not exists {index_schema}blob_digest on {on_schema}manifest_blob (blob_digest);
create index if not exists {index_schema}deleted_blob_digest on {on_schema}deleted_manifest_blob (blob_digest);
