-- Version 3: recording in fewer steps.

-- What has facts where it is not live: the usual blob, once pushed and never deleted, is not among it.
create index {index_schema}holdings_elsewhere on {on_schema}holdings (digest)
where deleted is not null or (as_blob is null and as_manifest is null);
