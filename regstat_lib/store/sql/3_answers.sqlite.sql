-- SQLite cannot replace a view. In Postgres they are not dropped, because somebody's own views may be made of them.
drop view images;
drop view tagged_images;
drop view untagged_images;
drop view untagged_manifests;
drop view manifest_facts;
drop view orphaned_blobs;
drop view broken_manifests;
drop view shared;
drop view deletions;
