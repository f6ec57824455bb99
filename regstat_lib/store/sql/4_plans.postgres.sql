-- A push adds to it where the other digests of its repository are, a few bytes each. In SQLite each entry would hold the
-- digest as well, in no order, and slow pushes by a fifth, for the deletion of whole repositories alone.
create index holdings_repository on {s}holdings (repository_id);
