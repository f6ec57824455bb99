-- The original's constraints: a link, or a tag, may now name what is not live.
alter table {s}manifest_blob drop constraint if exists blobs_fkey;
alter table {s}manifest_blob drop constraint if exists manifests_fkey;
alter table {s}tags drop constraint if exists manifests_fkey;
