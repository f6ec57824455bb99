-- One batch of facts, recorded: the only writer of the live tables.
--
-- Both engines run these statements in this order, in one transaction, while no other
-- writer is in its own: each statement sees what the ones before it did. Those marked "before its turn" are run before
-- that where there are several writers: nothing depends on them, and they on nothing.
--
-- staged_NAME is what came with the batch, already folded: one row for a key.
-- "set NAME" keeps the result of a select under that name for the statements after it; "more NAME" adds to it. Where the
-- statement is an upsert, that is what it returns of the rows with the "keys" of a relation.
-- "each kind" runs a statement twice, {kind} being blob and then manifest.
--
-- "if NAME, NAME" runs a statement only when one of the named has rows; NAME.COLUMN has when one has a 1 there.
-- {now} is the time of the batch.
-- Where "exists" would stand beside "or" or in a result, coalesce((select ...)) does: Postgres may answer such an "exists"
-- from a hash of the whole table.
-- A line with "since version" at its end is of that version of the schema and later ones.
-- A holding is live while its newest proof is newer than its newest deletion.

-- staged events (timestamp timestamp, id text, action text, registry text, repository text, digest text, tag text, media_type text, size bigint, from_repository text, method text, actor text, address text, user_agent text, source text, untimed integer)
-- staged aside (reason text, event text)
-- staged repositories (repository_id integer, deleted timestamp)
-- staged contents (manifest_digest text, complete integer)
-- staged links (manifest_digest text, blob_digest text, kind text, media_type text, size bigint)
-- staged holdings (digest text, repository_id integer, pushed timestamp, pulled timestamp, first_seen timestamp, as_blob timestamp, as_manifest timestamp, deleted timestamp, size bigint, media_type text, first_pushed timestamp)
-- staged deletions (digest text, repository_id integer, deleted timestamp)
-- staged tags (repository_id integer, tag text, sighted timestamp, manifest_digest text, pushed timestamp, pulled timestamp, first_seen timestamp, deleted timestamp)
-- staged pending (digest text, repository_id integer, url text, host text)

-- log
-- before its turn
-- if staged_events
insert into {s}events (timestamp, id, action, registry, repository, digest, tag, media_type, size,
    from_repository, method, actor, address, user_agent, source, received, untimed)
select timestamp, id, action, registry, repository, digest, tag, media_type, size,
    from_repository, method, actor, address, user_agent, source, {now}, untimed
from {staged_events}
where true
on conflict do nothing;

-- aside
-- before its turn
-- if staged_aside
insert into {s}set_aside (received, reason, event)
select {now}, reason, event from {staged_aside};

-- a repository deleted
-- if staged_repositories
insert into {s}repository_names (id, registry, repository, deleted)
select r.id, r.registry, r.repository, greatest(r.deleted, staged.deleted)
from {staged_repositories}
join {s}repository_names r on r.id = staged.repository_id
where true
on conflict (id) do update set deleted = excluded.deleted;

-- set told (manifest_digest text, complete integer)
-- contents that are news: a registry may tell those of a manifest with each of its pulls
-- if staged_contents
select staged.manifest_digest, staged.complete
from {staged_contents}
left join {s}contents c on c.manifest_digest = staged.manifest_digest
where c.manifest_digest is null or c.complete < staged.complete
union
select k.manifest_digest, k.complete
from {staged_links}
join {staged_contents:k} on k.manifest_digest = staged.manifest_digest
left join {s}manifest_blob l on l.manifest_digest = staged.manifest_digest and l.blob_digest = staged.blob_digest
left join {s}deleted_manifest_blob d on d.manifest_digest = staged.manifest_digest and d.blob_digest = staged.blob_digest
left join {s}foreign_layers f on f.manifest_digest = staged.manifest_digest and f.blob_digest = staged.blob_digest
where case
    when staged.kind = 'foreign'
    then f.manifest_digest is null or d.manifest_digest is not null
        or staged.media_type <> coalesce(f.media_type, '')
        or staged.size <> coalesce(f.size, -1)
    else l.manifest_digest is null and d.manifest_digest is null
end
    or l.manifest_digest is not null and (
        staged.kind <> coalesce(l.kind, '')
        or staged.media_type <> coalesce(l.media_type, '')
        or staged.size <> coalesce(l.size, -1)
    )
    or d.manifest_digest is not null and (
        staged.kind <> coalesce(d.kind, '')
        or staged.media_type <> coalesce(d.media_type, '')
        or staged.size <> coalesce(d.size, -1)
    );

-- set told_links (manifest_digest text, blob_digest text, kind text, media_type text, size bigint)
-- if told
select staged.manifest_digest, staged.blob_digest, staged.kind, staged.media_type, staged.size
from {staged_links}
join {told} on told.manifest_digest = staged.manifest_digest;

-- contents
-- if told
insert into {s}contents (manifest_digest, complete)
select manifest_digest, complete from {told:staged}
where true
on conflict (manifest_digest) do update set complete = greatest(contents.complete, excluded.complete);

-- set fresh (manifest_digest text, blob_digest text, kind text, media_type text, size bigint)
-- links that nobody told of before; they get their place when it is known which of their ends are live
-- if told_links
select staged.manifest_digest, staged.blob_digest, staged.kind, staged.media_type, staged.size
from {told_links:staged}
where staged.kind <> 'foreign'
    and not exists (
        select 1 from {s}manifest_blob l
        where l.manifest_digest = staged.manifest_digest and l.blob_digest = staged.blob_digest
    )
    and not exists (
        select 1 from {s}deleted_manifest_blob l
        where l.manifest_digest = staged.manifest_digest and l.blob_digest = staged.blob_digest
    );

-- contents: links that are there already may learn what a richer source says of them
-- if told_links
insert into {s}manifest_blob (manifest_digest, blob_digest, kind, media_type, size)
select l.manifest_digest, l.blob_digest, coalesce(staged.kind, l.kind), coalesce(staged.media_type, l.media_type),
    coalesce(staged.size, l.size)
from {told_links:staged}
join {s}manifest_blob l on l.manifest_digest = staged.manifest_digest and l.blob_digest = staged.blob_digest
where staged.kind <> coalesce(l.kind, '')
    or staged.media_type <> coalesce(l.media_type, '')
    or staged.size <> coalesce(l.size, -1)
on conflict (manifest_digest, blob_digest) do update set
    kind = excluded.kind,
    media_type = excluded.media_type,
    size = excluded.size;

-- contents: one that the original left, of a foreign layer, is none that can be missed
-- if told_links
delete from {s}deleted_manifest_blob
where (manifest_digest, blob_digest) in (
    select manifest_digest, blob_digest from {told_links:staged} where staged.kind = 'foreign'
);

-- if told_links
insert into {s}deleted_manifest_blob (manifest_digest, blob_digest, kind, media_type, size)
select l.manifest_digest, l.blob_digest, coalesce(staged.kind, l.kind), coalesce(staged.media_type, l.media_type),
    coalesce(staged.size, l.size)
from {told_links:staged}
join {s}deleted_manifest_blob l on l.manifest_digest = staged.manifest_digest and l.blob_digest = staged.blob_digest
where staged.kind <> coalesce(l.kind, '')
    or staged.media_type <> coalesce(l.media_type, '')
    or staged.size <> coalesce(l.size, -1)
on conflict (manifest_digest, blob_digest) do update set
    kind = excluded.kind,
    media_type = excluded.media_type,
    size = excluded.size;

-- contents: foreign layers
-- if told_links
insert into {s}foreign_layers (manifest_digest, blob_digest, media_type, size)
select staged.manifest_digest, staged.blob_digest, coalesce(staged.media_type, f.media_type), coalesce(staged.size, f.size)
from {told_links:staged}
left join {s}foreign_layers f on f.manifest_digest = staged.manifest_digest and f.blob_digest = staged.blob_digest
where staged.kind = 'foreign'
    and (
        f.manifest_digest is null
        or staged.media_type <> coalesce(f.media_type, '')
        or staged.size <> coalesce(f.size, -1)
    )
on conflict (manifest_digest, blob_digest) do update set
    media_type = excluded.media_type,
    size = excluded.size;

-- holdings: a deletion in any repository ends what the original knew without its repository
-- if staged_deletions
insert into {s}holdings (digest, repository_id, deleted)
select h.digest, h.repository_id, staged.deleted
from (select digest, max(deleted) as deleted from {staged_deletions} group by digest) staged
join {s}holdings h on h.digest = staged.digest and h.repository_id = 0
where true
on conflict (digest, repository_id) do update set deleted = greatest(holdings.deleted, excluded.deleted);

-- holdings: a repository deleted
-- if staged_repositories
insert into {s}holdings (digest, repository_id, deleted)
select h.digest, h.repository_id, staged.deleted
from {staged_repositories}
join {s}holdings h on h.repository_id = staged.repository_id
where true
on conflict (digest, repository_id) do update set deleted = greatest(holdings.deleted, excluded.deleted);

-- set touched (digest text, repository_id integer, blob integer, manifest integer, deletion integer, known_blob integer, known_manifest integer, described integer)
-- keys staged_holdings (digest, repository_id)
-- holdings: what the events say, and of each that has new facts: whether it is live there as a blob and as a manifest, was
-- ever deleted there, was live anywhere before as one or the other, and is a manifest with known contents
-- if staged_holdings
insert into {s}holdings (digest, repository_id, pushed, pulled, first_seen, as_blob, as_manifest, deleted, size, media_type,
    first_pushed)
select staged.digest, staged.repository_id, staged.pushed, staged.pulled, staged.first_seen,
    staged.as_blob, staged.as_manifest, greatest(staged.deleted, r.deleted), staged.size, staged.media_type,
    staged.first_pushed
from {staged_holdings}
join {s}repository_names r on r.id = staged.repository_id
where true
on conflict (digest, repository_id) do update set
    pushed = greatest(holdings.pushed, excluded.pushed),
    pulled = greatest(holdings.pulled, excluded.pulled),
    first_seen = least(holdings.first_seen, excluded.first_seen),
    as_blob = greatest(holdings.as_blob, excluded.as_blob),
    as_manifest = greatest(holdings.as_manifest, excluded.as_manifest),
    deleted = greatest(holdings.deleted, excluded.deleted),
    size = greatest(holdings.size, excluded.size),
    media_type = greatest(holdings.media_type {c}, excluded.media_type {c}),
    first_pushed = least(holdings.first_pushed, excluded.first_pushed)
returning holdings.digest, holdings.repository_id,
    case when holdings.as_blob > coalesce(holdings.deleted, '0001-01-01') then 1 else 0 end,
    case when holdings.as_manifest > coalesce(holdings.deleted, '0001-01-01') then 1 else 0 end,
    case when holdings.deleted is null then 0 else 1 end,
    coalesce((select 1 from {s}blobs o where o.digest = holdings.digest), 0),
    coalesce((select 1 from {s}manifests o where o.digest = holdings.digest), 0),
    (select 1 from {s}contents c where c.manifest_digest = holdings.digest);

-- set described (digest text, repository_id integer)
-- if touched.described
select touched.digest, touched.repository_id from {touched} where touched.described = 1;

-- set referrers (digest text, repository_id integer, pushed timestamp, pulled timestamp, first_pushed timestamp)
-- manifests whose facts, or contents, are new, in each repository: what they reference shares in them
-- if described, told
select h.digest, h.repository_id, h.pushed, h.pulled, h.first_pushed
from {described}
join {s}holdings h on h.digest = described.digest and h.repository_id = described.repository_id
union
select h.digest, h.repository_id, h.pushed, h.pulled, h.first_pushed
from {told:staged}
join {s}holdings h on h.digest = staged.manifest_digest;

-- set referenced (digest text, repository_id integer, pulled timestamp, first_seen timestamp, as_blob timestamp, as_manifest timestamp, size bigint, media_type text, pulled_in_index timestamp)
-- a pushed manifest proves that what it references was there (not foreign layers, not its subject),
-- a pull of a manifest is a pull of its blobs, and a pull of an index is a use of its images
-- if referrers
select l.blob_digest, l.repository_id,
    max(case when coalesce(l.kind, '') not in ('manifest', 'subject') then l.pulled end),
    -- Of what the original had deleted only the newest push is known.
    min(case when coalesce(l.kind, '') not in ('foreign', 'subject') then coalesce(l.first_pushed, l.pushed) end),
    max(case when coalesce(l.kind, '') not in ('foreign', 'manifest', 'subject') then l.pushed end),
    max(case when l.kind = 'manifest' then l.pushed end),
    max(l.size),
    max(l.media_type {c}),
    max(case when l.kind = 'manifest' then l.pulled end)
from (
    select m.blob_digest, m.kind, m.size, m.media_type, repository_id, pushed, pulled, first_pushed
    from {referrers} join {s}manifest_blob m on m.manifest_digest = referrers.digest
    union all
    select m.blob_digest, m.kind, m.size, m.media_type, repository_id, pushed, pulled, first_pushed
    from {referrers} join {s}deleted_manifest_blob m on m.manifest_digest = referrers.digest
    union all
    select f.blob_digest, 'foreign', f.size, f.media_type, repository_id, pushed, pulled, first_pushed
    from {referrers} join {s}foreign_layers f on f.manifest_digest = referrers.digest
    union all
    select fresh.blob_digest, fresh.kind, fresh.size, fresh.media_type, h.repository_id, h.pushed, h.pulled, h.first_pushed
    from {fresh} join {s}holdings h on h.digest = fresh.manifest_digest
) l
group by l.blob_digest, l.repository_id;

-- more touched
-- keys referenced (digest, repository_id)
-- holdings: what the references say
-- if referenced
insert into {s}holdings (digest, repository_id, pulled, first_seen, as_blob, as_manifest, deleted, size,
    pulled_in_index, -- since version 5
    media_type)
select f.digest, f.repository_id, f.pulled, f.first_seen, f.as_blob, f.as_manifest,
    -- A deletion in any repository ends what the original knew without its repository, also when that is learned later.
    case when f.repository_id = 0 then (select max(o.deleted) from {s}holdings o where o.digest = f.digest) else r.deleted end,
    f.size,
    f.pulled_in_index, -- since version 5
    f.media_type
from {referenced:f}
join {s}repository_names r on r.id = f.repository_id
where true
on conflict (digest, repository_id) do update set
    pulled = greatest(holdings.pulled, excluded.pulled),
    first_seen = least(holdings.first_seen, excluded.first_seen),
    as_blob = greatest(holdings.as_blob, excluded.as_blob),
    as_manifest = greatest(holdings.as_manifest, excluded.as_manifest),
    deleted = greatest(holdings.deleted, excluded.deleted),
    size = greatest(holdings.size, excluded.size),
    pulled_in_index = greatest(holdings.pulled_in_index, excluded.pulled_in_index), -- since version 5
    media_type = greatest(holdings.media_type {c}, excluded.media_type {c})
returning holdings.digest, holdings.repository_id,
    case when holdings.as_blob > coalesce(holdings.deleted, '0001-01-01') then 1 else 0 end,
    case when holdings.as_manifest > coalesce(holdings.deleted, '0001-01-01') then 1 else 0 end,
    case when holdings.deleted is null then 0 else 1 end,
    coalesce((select 1 from {s}blobs o where o.digest = holdings.digest), 0),
    coalesce((select 1 from {s}manifests o where o.digest = holdings.digest), 0),
    cast(null as integer);

-- set emptied (digest text)
-- what a deleted repository held
-- if staged_repositories
select h.digest from {staged_repositories} join {s}holdings h on h.repository_id = staged.repository_id;

-- set condemned (digest text)
-- what a deletion may have ended, or changed among the dead
-- if touched.deletion, emptied
select digest from {touched} where touched.deletion = 1
union
select digest from {emptied};

-- each kind
-- set born_{kind} (digest text)
-- if touched.{kind}
select distinct touched.digest from {touched} where touched.{kind} = 1 and touched.known_{kind} = 0;

-- each kind
-- live already: newer facts; a row is never inserted here
-- if touched.known_{kind}
insert into {s}{kind}s (digest, pushed, pulled, size, media_type, first_seen, last_push)
select touched.digest, {now}, max(h.pulled), max(h.size), max(h.media_type {c}), min(h.first_seen), max(h.pushed)
from {touched}
join {s}holdings h on h.digest = touched.digest and h.repository_id = touched.repository_id
where touched.known_{kind} = 1
group by touched.digest
on conflict (digest) do update set
    pushed = coalesce(greatest({kind}s.last_push, excluded.last_push), least({kind}s.first_seen, excluded.first_seen)),
    pulled = greatest({kind}s.pulled, excluded.pulled),
    size = greatest({kind}s.size, excluded.size),
    media_type = greatest({kind}s.media_type {c}, excluded.media_type {c}),
    first_seen = least({kind}s.first_seen, excluded.first_seen),
    last_push = greatest({kind}s.last_push, excluded.last_push);

-- each kind
-- live now
-- if born_{kind}
insert into {s}{kind}s (digest, pushed, pulled, size, media_type, first_seen, last_push)
select born.digest, coalesce(max(h.pushed), min(h.first_seen)), max(h.pulled), max(h.size), max(h.media_type {c}),
    min(h.first_seen), max(h.pushed)
from {born_{kind}:born}
join {s}holdings h on h.digest = born.digest
group by born.digest;

-- each kind
-- set died_{kind} (digest text)
-- if condemned
select o.digest
from {condemned}
join {s}{kind}s o on o.digest = condemned.digest
where not exists (
    select 1 from {s}holdings h
    where h.digest = o.digest and h.as_{kind} > coalesce(h.deleted, '0001-01-01')
);

-- each kind
-- if died_{kind}
delete from {s}{kind}s where digest in (select digest from {died_{kind}:died});

-- each kind
-- the trail of deletions: what was known and is live nowhere
-- if condemned
insert into {s}deleted_{kind}s (digest, pushed, pulled, deleted, size, media_type)
select condemned.digest, coalesce(max(h.pushed), min(h.first_seen)), max(h.pulled), max(h.deleted), max(h.size), max(h.media_type {c})
from {condemned}
join {s}holdings h on h.digest = condemned.digest
where not exists (select 1 from {s}{kind}s o where o.digest = condemned.digest)
group by condemned.digest
having max(h.as_{kind}) is not null and max(h.deleted) is not null
on conflict (digest) do update set
    pushed = excluded.pushed,
    pulled = excluded.pulled,
    deleted = excluded.deleted,
    size = excluded.size,
    media_type = excluded.media_type;

-- set awaited (digest text)
-- new blobs that a known manifest references
-- if born_blob
select born.digest
from {born_blob:born}
where coalesce(
    (select 1 from {s}deleted_manifest_blob d where d.blob_digest = born.digest limit 1),
    (select 1 from {s}foreign_layers f where f.blob_digest = born.digest limit 1)
) = 1;

-- links that are new: both ends live
-- if fresh
insert into {s}manifest_blob (manifest_digest, blob_digest, kind, media_type, size)
select fresh.manifest_digest, fresh.blob_digest, fresh.kind, fresh.media_type, fresh.size
from {fresh}
where exists (select 1 from {s}manifests m where m.digest = fresh.manifest_digest)
    and coalesce(
        (select 1 from {s}blobs b where b.digest = fresh.blob_digest),
        (select 1 from {s}manifests m where m.digest = fresh.blob_digest)
    ) = 1;

-- links that are new: one end at most
-- if fresh
insert into {s}deleted_manifest_blob (manifest_digest, blob_digest, kind, media_type, size)
select fresh.manifest_digest, fresh.blob_digest, fresh.kind, fresh.media_type, fresh.size
from {fresh}
where not exists (
    select 1 from {s}manifest_blob l
    where l.manifest_digest = fresh.manifest_digest and l.blob_digest = fresh.blob_digest
);

-- set rising (manifest_digest text, blob_digest text, kind text, media_type text, size bigint)
-- links whose two ends are live now
-- if told, awaited, born_manifest
select l.manifest_digest, l.blob_digest, l.kind, l.media_type, l.size
from (
    select d.manifest_digest, d.blob_digest, d.kind, d.media_type, d.size
    from {told_links:staged}
    join {s}deleted_manifest_blob d
        on d.manifest_digest = staged.manifest_digest and d.blob_digest = staged.blob_digest
    union
    select d.manifest_digest, d.blob_digest, d.kind, d.media_type, d.size
    from {born_manifest:born} join {s}deleted_manifest_blob d on d.manifest_digest = born.digest
    union
    select d.manifest_digest, d.blob_digest, d.kind, d.media_type, d.size
    from {born_manifest:born} join {s}deleted_manifest_blob d on d.blob_digest = born.digest
    union
    select d.manifest_digest, d.blob_digest, d.kind, d.media_type, d.size
    from {awaited:born} join {s}deleted_manifest_blob d on d.blob_digest = born.digest
    union
    select f.manifest_digest, f.blob_digest, 'foreign', f.media_type, f.size
    from {told:staged} join {s}foreign_layers f on f.manifest_digest = staged.manifest_digest
    union
    select f.manifest_digest, f.blob_digest, 'foreign', f.media_type, f.size
    from {born_manifest:born} join {s}foreign_layers f on f.manifest_digest = born.digest
    union
    select f.manifest_digest, f.blob_digest, 'foreign', f.media_type, f.size
    from {awaited:born} join {s}foreign_layers f on f.blob_digest = born.digest
) l
where exists (select 1 from {s}manifests m where m.digest = l.manifest_digest)
    and coalesce(
        (select 1 from {s}blobs b where b.digest = l.blob_digest),
        (select 1 from {s}manifests m where m.digest = l.blob_digest)
    ) = 1;

-- if rising
insert into {s}manifest_blob (manifest_digest, blob_digest, kind, media_type, size)
select manifest_digest, blob_digest, kind, media_type, size from {rising}
where true
on conflict do nothing;

-- if rising
delete from {s}deleted_manifest_blob
where (manifest_digest, blob_digest) in (select manifest_digest, blob_digest from {rising});

-- set falling (manifest_digest text, blob_digest text, kind text, media_type text, size bigint)
-- links that lost an end
-- if died_blob, died_manifest
select l.manifest_digest, l.blob_digest, l.kind, l.media_type, l.size
from {died_manifest:died} join {s}manifest_blob l on l.manifest_digest = died.digest
union
select l.manifest_digest, l.blob_digest, l.kind, l.media_type, l.size
from {died_manifest:died} join {s}manifest_blob l on l.blob_digest = died.digest
where not exists (select 1 from {s}blobs b where b.digest = died.digest)
union
select l.manifest_digest, l.blob_digest, l.kind, l.media_type, l.size
from {died_blob:died} join {s}manifest_blob l on l.blob_digest = died.digest
where not exists (select 1 from {s}manifests m where m.digest = died.digest);

-- if falling
insert into {s}deleted_manifest_blob (manifest_digest, blob_digest, kind, media_type, size)
select manifest_digest, blob_digest, kind, media_type, size from {falling}
where coalesce(falling.kind, '') <> 'foreign'
on conflict do nothing;

-- if falling
delete from {s}manifest_blob
where (manifest_digest, blob_digest) in (select manifest_digest, blob_digest from {falling});

-- set loose (manifest_digest text, blob_digest text)
-- links without a live end that a deletion, or their contents, are news of
-- if condemned, told_links
select c.manifest_digest, c.blob_digest
from {condemned} join {s}deleted_manifest_blob c on c.manifest_digest = condemned.digest
union
select c.manifest_digest, c.blob_digest
from {condemned} join {s}deleted_manifest_blob c on c.blob_digest = condemned.digest
union
select c.manifest_digest, c.blob_digest
from {told_links:staged}
join {s}deleted_manifest_blob c on c.manifest_digest = staged.manifest_digest and c.blob_digest = staged.blob_digest;

-- since when a link is gone: the newest deletion of an end that is not live
-- if loose
insert into {s}deleted_manifest_blob (manifest_digest, blob_digest, deleted)
select l.manifest_digest, l.blob_digest, max(l.deleted)
from (
    select c.manifest_digest, c.blob_digest, d.deleted
    from {loose:c} join {s}deleted_manifests d on d.digest = c.manifest_digest
    where not exists (select 1 from {s}manifests o where o.digest = d.digest)
        and not exists (select 1 from {s}blobs o where o.digest = d.digest)
    union all
    select c.manifest_digest, c.blob_digest, d.deleted
    from {loose:c} join {s}deleted_manifests d on d.digest = c.blob_digest
    where not exists (select 1 from {s}manifests o where o.digest = d.digest)
        and not exists (select 1 from {s}blobs o where o.digest = d.digest)
    union all
    select c.manifest_digest, c.blob_digest, d.deleted
    from {loose:c} join {s}deleted_blobs d on d.digest = c.blob_digest
    where not exists (select 1 from {s}manifests o where o.digest = d.digest)
        and not exists (select 1 from {s}blobs o where o.digest = d.digest)
) l
where true
group by l.manifest_digest, l.blob_digest
on conflict (manifest_digest, blob_digest) do update set deleted = excluded.deleted;

-- sightings of tags: the newest one says where a tag points; of two of one time, the greater digest
-- if staged_tags
insert into {s}sightings (repository_id, tag, sighted, manifest_digest, pushed, pulled, first_seen, deleted)
select staged.repository_id, staged.tag, staged.sighted, staged.manifest_digest, staged.pushed, staged.pulled,
    staged.first_seen, greatest(staged.deleted, r.deleted)
from {staged_tags}
join {s}repository_names r on r.id = staged.repository_id
where true
on conflict (repository_id, tag) do update set
    manifest_digest = case
        when excluded.sighted is null then sightings.manifest_digest
        when sightings.sighted is null or excluded.sighted > sightings.sighted then excluded.manifest_digest
        when excluded.sighted < sightings.sighted then sightings.manifest_digest
        else greatest(sightings.manifest_digest {c}, excluded.manifest_digest {c})
    end,
    sighted = greatest(sightings.sighted, excluded.sighted),
    pushed = greatest(sightings.pushed, excluded.pushed),
    pulled = greatest(sightings.pulled, excluded.pulled),
    first_seen = least(sightings.first_seen, excluded.first_seen),
    deleted = greatest(sightings.deleted, excluded.deleted);

-- if staged_repositories
insert into {s}sightings (repository_id, tag, deleted)
select g.repository_id, g.tag, staged.deleted
from {staged_repositories}
join {s}sightings g on g.repository_id = staged.repository_id
where true
on conflict (repository_id, tag) do update set deleted = greatest(sightings.deleted, excluded.deleted);

-- set doubtful (repository_id integer, tag text)
-- tags that were sighted or deleted, or whose manifest was deleted
-- if staged_tags, staged_deletions, staged_repositories
select repository_id, tag from {staged_tags}
union
select g.repository_id, g.tag
from {staged_deletions}
join {s}sightings g on g.manifest_digest = staged.digest and g.repository_id = staged.repository_id
union
select g.repository_id, g.tag
from {staged_repositories}
join {s}sightings g on g.repository_id = staged.repository_id;

-- set standing (name text, live integer, registry text, repository text, tag text, manifest_digest text, pushed timestamp, pulled timestamp, deleted timestamp)
-- if doubtful
select r.registry || '/' || r.repository || ':' || g.tag,
    case when g.sighted > coalesce(greatest(g.deleted, h.deleted), '0001-01-01') then 1 else 0 end,
    r.registry, r.repository, g.tag, g.manifest_digest, coalesce(g.pushed, g.first_seen), g.pulled,
    case when g.deleted >= g.sighted then g.deleted else h.deleted end
from {doubtful}
join {s}sightings g on g.repository_id = doubtful.repository_id and g.tag = doubtful.tag
join {s}repository_names r on r.id = g.repository_id
left join {s}holdings h on h.digest = g.manifest_digest and h.repository_id = g.repository_id
where g.sighted is not null;

-- if standing
insert into {s}tags (name, registry, repository, tag, manifest_digest, pushed, pulled)
select name, registry, repository, tag, manifest_digest, pushed, pulled from {standing}
where standing.live = 1
on conflict (name) do update set
    manifest_digest = excluded.manifest_digest,
    pushed = excluded.pushed,
    pulled = excluded.pulled;

-- if standing
delete from {s}tags where name in (select name from {standing} where standing.live = 0);

-- if standing
insert into {s}deleted_tags (name, registry, repository, tag, manifest_digest, pushed, pulled, deleted)
select name, registry, repository, tag, manifest_digest, pushed, pulled, deleted from {standing}
where standing.live = 0
on conflict (name) do update set
    manifest_digest = excluded.manifest_digest,
    pushed = excluded.pushed,
    pulled = excluded.pulled,
    deleted = excluded.deleted;

-- manifests whose contents are still to be asked for; a newer fact takes up again what was given up
-- if staged_pending
insert into {s}pending_manifests (digest, repository_id, url, host, next_attempt)
select staged.digest, staged.repository_id, staged.url, staged.host, {now}
from {staged_pending}
where not exists (select 1 from {s}contents c where c.manifest_digest = staged.digest and c.complete = 1)
on conflict (digest, repository_id) do update set
    url = excluded.url,
    host = excluded.host,
    attempts = case when pending_manifests.given_up is null then pending_manifests.attempts else 0 end,
    next_attempt = case when pending_manifests.given_up is null then pending_manifests.next_attempt else excluded.next_attempt end,
    given_up = null;

-- children of an index that were never seen themselves
-- if referenced
insert into {s}pending_manifests (digest, repository_id, url, host, next_attempt)
select f.digest, f.repository_id, '', '', {now}
from {referenced:f}
where f.as_manifest is not null
    and not exists (select 1 from {s}contents c where c.manifest_digest = f.digest and c.complete = 1)
on conflict do nothing;

-- if staged_contents
delete from {s}pending_manifests
where digest in (select manifest_digest from {staged_contents} where staged.complete = 1);

-- From here on: since version 3.

-- set summed (manifest_digest text)
-- what follows from contents is new for the manifests they are of, and for the indexes that these are in
-- if told
select manifest_digest from {told:staged}
union
select l.manifest_digest
from {told:staged} join {s}manifest_blob l on l.blob_digest = staged.manifest_digest and l.kind = 'manifest'
union
select l.manifest_digest
from {told:staged} join {s}deleted_manifest_blob l on l.blob_digest = staged.manifest_digest and l.kind = 'manifest';

-- set sources (manifest_digest text, source text)
-- whose references are parts of a manifest: its own and its children's
-- if summed
select summed.manifest_digest, summed.manifest_digest from {summed}
union
select l.manifest_digest, l.blob_digest
from {summed} join {s}manifest_blob l on l.manifest_digest = summed.manifest_digest and l.kind = 'manifest'
union
select l.manifest_digest, l.blob_digest
from {summed} join {s}deleted_manifest_blob l on l.manifest_digest = summed.manifest_digest and l.kind = 'manifest';

-- set parts (manifest_digest text, digest text, size bigint, known integer)
-- what each is made of beside itself; known = 0 when there is more, of which nothing is known
-- if summed
select a.manifest_digest, a.digest, max(a.size), min(a.known)
from (
    select sources.manifest_digest, l.blob_digest as digest, l.size,
        case when l.kind = 'manifest' and sources.source <> sources.manifest_digest then 0 else 1 end as known
    from {sources} join {s}manifest_blob l on l.manifest_digest = sources.source
    where coalesce(l.kind, '') not in ('foreign', 'subject')
    union all
    select sources.manifest_digest, l.blob_digest, l.size,
        case when l.kind = 'manifest' and sources.source <> sources.manifest_digest then 0 else 1 end
    from {sources} join {s}deleted_manifest_blob l on l.manifest_digest = sources.source
    where coalesce(l.kind, '') not in ('foreign', 'subject')
    union all
    select sources.manifest_digest, sources.source, null, 0
    from {sources}
    where not exists (select 1 from {s}contents c where c.manifest_digest = sources.source)
) a
group by a.manifest_digest, a.digest;

-- contents: the bytes of all parts, unless one is not known
-- if parts
insert into {s}contents (manifest_digest, complete, size)
select k.manifest_digest, k.complete,
    case when count(*) = count(parts.size) and min(parts.known) = 1 then sum(parts.size) end
from {parts}
join {s}contents k on k.manifest_digest = parts.manifest_digest
where true
group by k.manifest_digest, k.complete
on conflict (manifest_digest) do update set size = excluded.size;

-- contents: the platforms, one if there are no children
-- if summed
insert into {s}contents (manifest_digest, complete, platforms)
select k.manifest_digest, k.complete, case
    when coalesce(
        (
            select 1 from {s}manifest_blob l
            where l.manifest_digest = k.manifest_digest and coalesce(l.kind, '') <> 'foreign'
            limit 1
        ),
        (select 1 from {s}deleted_manifest_blob l where l.manifest_digest = k.manifest_digest limit 1)
    ) = 1
    then {greatest}(
        (select count(*) from {s}manifest_blob l where l.manifest_digest = k.manifest_digest and l.kind = 'manifest')
        + (select count(*) from {s}deleted_manifest_blob l where l.manifest_digest = k.manifest_digest and l.kind = 'manifest'),
        1
    ) end
from {summed}
join {s}contents k on k.manifest_digest = summed.manifest_digest
where true
on conflict (manifest_digest) do update set platforms = excluded.platforms;
