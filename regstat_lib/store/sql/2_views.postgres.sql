-- Reports list images in the order of their bytes, as SQLite does, whatever the collation of the database is.
create index tags_name_bytes on {s}tags (name {c});

-- Without it a plan takes every event for one of a day of its own. Statistics of expressions came with Postgres 14.
do $$ begin if current_setting('server_version_num')::integer >= 140000 then create statistics {s}events_day on (date("timestamp")) from {s}events; end if; end $$;
