-- SQLite cannot replace a view. In Postgres they are not dropped, because somebody's own views may be made of them.
drop view repository_totals;
drop view repositories;
