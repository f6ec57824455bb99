-- Reports list images in the order of their bytes, as SQLite does, whatever the collation of the database is.
create index tags_name_bytes on {s}tags (name {c});
