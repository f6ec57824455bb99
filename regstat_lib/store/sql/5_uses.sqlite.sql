-- SQLite cannot replace a view. In Postgres they are not dropped, because somebody's own views may be made of them.
drop view manifest_facts;
drop view tagged_images;
-- Made by what was version 4 for some hours, and never released.
drop view if exists newest_index_pulls;
drop view if exists index_pulls;
