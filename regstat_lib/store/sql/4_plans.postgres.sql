-- A push adds to it where the other digests of its repository are, a few bytes each. In SQLite each entry would hold the
-- digest as well, in no order, and slow pushes by a fifth, for the deletion of whole repositories alone.
create index holdings_repository on {s}holdings (repository_id);

-- A pull changes a few times of a row. Where its page has room for the new version, that goes there, and no index need
-- know of it (Postgres documentation, "Heap-Only Tuples"); pages that are full already are left as they are.
alter table {s}holdings set (fillfactor = 90);
alter table {s}blobs set (fillfactor = 90);
alter table {s}manifests set (fillfactor = 90);
alter table {s}sightings set (fillfactor = 90);
alter table {s}tags set (fillfactor = 90);
