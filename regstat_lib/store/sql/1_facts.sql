-- Version 1: what each repository holds, where the live tables come from; the log;
-- pending manifests; what was set aside. Rows that the original left are attributed
-- to the repositories that its tags name; the rest to the unknown repository, id 0.

alter table {s}blobs {add_column} size bigint;
alter table {s}blobs {add_column} media_type text;
alter table {s}blobs {add_column} first_seen timestamp;
alter table {s}blobs {add_column} last_push timestamp;
alter table {s}manifests {add_column} size bigint;
alter table {s}manifests {add_column} media_type text;
alter table {s}manifests {add_column} first_seen timestamp;
alter table {s}manifests {add_column} last_push timestamp;
alter table {s}deleted_blobs {add_column} size bigint;
alter table {s}deleted_blobs {add_column} media_type text;
alter table {s}deleted_manifests {add_column} size bigint;
alter table {s}deleted_manifests {add_column} media_type text;
alter table {s}manifest_blob {add_column} kind text;
alter table {s}manifest_blob {add_column} media_type text;
alter table {s}manifest_blob {add_column} size bigint;
alter table {s}deleted_manifest_blob {add_column} deleted timestamp;
alter table {s}deleted_manifest_blob {add_column} kind text;
alter table {s}deleted_manifest_blob {add_column} media_type text;
alter table {s}deleted_manifest_blob {add_column} size bigint;

create table {s}repository_names (
    id {serial},
    registry text not null,
    repository text not null,
    deleted timestamp,
    unique (registry, repository)
);

-- What one repository holds, or held: each column is the newest time of its kind
-- (first_seen and first_pushed: the oldest), so that events may come in any order and any number of times. as_blob and
-- as_manifest are the newest proofs that the repository held the digest as one.
create table {s}holdings (
    digest text not null,
    repository_id integer not null,
    pushed timestamp,
    pulled timestamp,
    first_seen timestamp,
    as_blob timestamp,
    as_manifest timestamp,
    deleted timestamp,
    size bigint,
    media_type text,
    first_pushed timestamp,
    primary key (digest, repository_id)
){without_rowid};

-- What a tag was newest seen to point to, and when it was deleted.
create table {s}sightings (
    repository_id integer not null,
    tag text not null,
    sighted timestamp,
    manifest_digest text,
    pushed timestamp,
    pulled timestamp,
    first_seen timestamp,
    deleted timestamp,
    primary key (repository_id, tag)
){without_rowid};

create index {index_schema}sightings_manifest_digest on {on_schema}sightings (manifest_digest, repository_id);

-- The manifests whose contents are known; complete = 0 while only what an event
-- told is known and the manifest may hold more (the subject of an artifact).
create table {s}contents (
    manifest_digest text primary key,
    complete integer not null
){without_rowid};

-- Layers that a manifest names by a URL elsewhere: the registry need not hold them,
-- so their link is in manifest_blob while it does, and otherwise only here.
create table {s}foreign_layers (
    manifest_digest text not null,
    blob_digest text not null,
    media_type text,
    size bigint,
    primary key (manifest_digest, blob_digest)
){without_rowid};

create index {index_schema}foreign_layers_blob_digest on {on_schema}foreign_layers (blob_digest);

create table {s}pending_manifests (
    digest text not null,
    repository_id integer not null,
    url text not null,
    host text not null,
    attempts integer not null default 0,
    next_attempt timestamp not null,
    last_error text,
    given_up timestamp,
    primary key (digest, repository_id)
);

create index {index_schema}pending_manifests_due on {on_schema}pending_manifests (next_attempt) where given_up is null;

-- Each event once. The key starts with the time, which a repetition has too, so that
-- new rows go to the end of the index however large the log is.
create table {s}events (
    timestamp timestamp not null,
    id text not null,
    action text not null,
    registry text not null,
    repository text not null,
    digest text,
    tag text,
    media_type text,
    size bigint,
    from_repository text,
    method text,
    actor text,
    address text,
    user_agent text,
    source text,
    received timestamp not null,
    untimed integer,
    primary key (timestamp, id)
){without_rowid};

-- An event without a time has the time it came at, which a repetition has not:
-- these are known by their id alone.
create unique index {index_schema}events_untimed on {on_schema}events (id) where untimed is not null;

create table {s}set_aside (
    id {serial},
    received timestamp not null,
    reason text not null,
    event text not null
);

-- What the original left.

insert into {s}repository_names (id, registry, repository) values (0, '', '');

insert into {s}repository_names (registry, repository)
select registry, repository from {s}tags
union
select registry, repository from {s}deleted_tags;

update {s}blobs set first_seen = pushed, last_push = pushed;
update {s}manifests set first_seen = pushed, last_push = pushed;

insert into {s}sightings (repository_id, tag, sighted, manifest_digest, pushed, pulled, first_seen)
select r.id, coalesce(t.tag, ''), greatest(t.pushed, t.pulled), t.manifest_digest, t.pushed, t.pulled, t.pushed
from {s}tags t
join {s}repository_names r on r.registry = t.registry and r.repository = t.repository
where t.name = t.registry || '/' || t.repository || ':' || coalesce(t.tag, '');

insert into {s}sightings (repository_id, tag, sighted, manifest_digest, pushed, pulled, first_seen, deleted)
select r.id, coalesce(t.tag, ''), t.pushed, t.manifest_digest, t.pushed, t.pulled, t.pushed, greatest(t.deleted, t.pushed)
from {s}deleted_tags t
join {s}repository_names r on r.registry = t.registry and r.repository = t.repository
where t.name = t.registry || '/' || t.repository || ':' || coalesce(t.tag, '')
on conflict (repository_id, tag) do nothing;

insert into {s}holdings (digest, repository_id, pushed, pulled, first_seen, as_manifest, first_pushed)
select m.digest, r.id, max(m.pushed), max(m.pulled), min(m.pushed), max(greatest(m.pushed, t.pushed)), min(m.pushed)
from {s}manifests m
join {s}tags t on t.manifest_digest = m.digest
join {s}repository_names r on r.registry = t.registry and r.repository = t.repository
group by m.digest, r.id;

insert into {s}holdings (digest, repository_id, pushed, pulled, first_seen, as_manifest, first_pushed)
select m.digest, 0, m.pushed, m.pulled, m.pushed, m.pushed, m.pushed
from {s}manifests m
where not exists (select 1 from {s}holdings h where h.digest = m.digest);

insert into {s}holdings (digest, repository_id, pushed, pulled, first_seen, as_blob)
select b.digest, h.repository_id, max(b.pushed), max(b.pulled), min(b.pushed), max(greatest(b.pushed, h.as_manifest))
from {s}blobs b
join {s}manifest_blob l on l.blob_digest = b.digest
join {s}holdings h on h.digest = l.manifest_digest
group by b.digest, h.repository_id
on conflict (digest, repository_id) do update set as_blob = excluded.as_blob;

insert into {s}holdings (digest, repository_id, pushed, pulled, first_seen, as_blob)
select b.digest, 0, b.pushed, b.pulled, b.pushed, b.pushed
from {s}blobs b
where not exists (select 1 from {s}holdings h where h.digest = b.digest);

-- What it had deleted, so that an older event that comes late does not bring it back.
insert into {s}holdings (digest, repository_id, pushed, pulled, first_seen, as_manifest, deleted)
select d.digest, 0, d.pushed, d.pulled, d.pushed, d.pushed, greatest(d.deleted, d.pushed)
from {s}deleted_manifests d
where true
on conflict (digest, repository_id) do nothing;

insert into {s}holdings (digest, repository_id, pushed, pulled, first_seen, as_blob, deleted)
select d.digest, h.repository_id, max(d.pushed), max(d.pulled), min(d.pushed), max(d.pushed),
    max(greatest(d.deleted, d.pushed))
from {s}deleted_blobs d
join {s}deleted_manifest_blob l on l.blob_digest = d.digest
join {s}holdings h on h.digest = l.manifest_digest
where true
group by d.digest, h.repository_id
on conflict (digest, repository_id) do nothing;

insert into {s}holdings (digest, repository_id, pushed, pulled, first_seen, as_blob, deleted)
select d.digest, 0, d.pushed, d.pulled, d.pushed, d.pushed, greatest(d.deleted, d.pushed)
from {s}deleted_blobs d
where true
on conflict (digest, repository_id) do nothing;

update {s}deleted_manifest_blob set deleted = (
    select max(d.deleted) from (
        select digest, deleted from {s}deleted_blobs
        union all
        select digest, deleted from {s}deleted_manifests
    ) d
    where d.digest in ({s}deleted_manifest_blob.manifest_digest, {s}deleted_manifest_blob.blob_digest)
)
where deleted is null;

-- Its links are what is known of its manifests; the registry is still asked for the rest.
insert into {s}contents (manifest_digest, complete)
select manifest_digest, 0 from {s}manifest_blob
union
select manifest_digest, 0 from {s}deleted_manifest_blob;
