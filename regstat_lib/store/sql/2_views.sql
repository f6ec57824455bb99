-- Version 2: the answers. Each report is a select from one of these views, and so is a panel in Grafana.
--
-- Times are UTC; null is "not known" or "never". What a view says of a digest it says of one repository, as a
-- deletion does. A column `doubt` that is not null says why the row may be wrong: do not delete because of it.
--
-- Two things are worded for Postgres' planner, which knows nothing of how columns hang together: "is not true" is how
-- it guesses best how many digests are live, and "coalesce(... = ..., false)" is an equality that it takes to be true
-- of many rows (a tag and its manifest are in one repository).

-- Since when regstat has been told what happens: of what was before, the absence of a fact proves nothing.
create table {s}watching (since timestamp not null);
insert into {s}watching (since) select coalesce((select min(received) from {s}events), {utc_now});

-- The original knew of some manifests that they are there and not what they reference; a new event of one has it asked
-- for.
insert into {s}pending_manifests (digest, repository_id, url, host, next_attempt, last_error, given_up)
select h.digest, h.repository_id, '', '', {utc_now}, 'the original regstat left it without what it references', {utc_now}
from {s}holdings h
where h.as_manifest > coalesce(h.deleted, '0001-01-01')
    and not exists (select 1 from {s}contents c where c.manifest_digest = h.digest)
    and not exists (select 1 from {s}manifest_blob l where l.manifest_digest = h.digest)
    and not exists (select 1 from {s}deleted_manifest_blob l where l.manifest_digest = h.digest)
on conflict do nothing;

-- What was deleted is little of what there is: neither index grows with a push or a pull.
create index {index_schema}holdings_deleted on {on_schema}holdings (deleted) where deleted is not null;
create index {index_schema}manifest_blob_child on {on_schema}manifest_blob (blob_digest) where kind = 'manifest';
create index {index_schema}deleted_manifest_blob_child on {on_schema}deleted_manifest_blob (blob_digest) where kind = 'manifest';

-- Every reference of every manifest, whether or not both ends are live; `kind` is null where the original left it.
create view {s}links as
select manifest_digest, blob_digest, kind, media_type, size from {s}manifest_blob
union all
select manifest_digest, blob_digest, kind, media_type, size from {s}deleted_manifest_blob;

-- What each repository holds now; registry and repository are null where the original did not say them.
create view {s}held as
select nullif(r.registry, '') as registry, nullif(r.repository, '') as repository, h.digest,
    case when h.as_manifest > coalesce(h.deleted, '0001-01-01') then 'manifest' else 'blob' end as kind,
    h.media_type, h.size, h.pushed, h.pulled, h.first_seen, h.repository_id
from {s}holdings h
join {s}repository_names r on r.id = h.repository_id
where h.as_manifest > coalesce(h.deleted, '0001-01-01') or h.as_blob > coalesce(h.deleted, '0001-01-01');

-- Manifests of which regstat does not know what they reference: not fetched yet, or given up.
create view {s}unknown_contents as
select nullif(r.registry, '') as registry, nullif(r.repository, '') as repository, p.digest, h.media_type,
    h.pushed, h.pulled, p.attempts, p.last_error, p.given_up,
    case when h.as_manifest > coalesce(h.deleted, '0001-01-01') then 1 else 0 end as live, p.repository_id
from {s}pending_manifests p
join {s}repository_names r on r.id = p.repository_id
join {s}holdings h on h.digest = p.digest and h.repository_id = p.repository_id
where not exists (select 1 from {s}contents c where c.manifest_digest = p.digest);

-- Manifests that stand alone: no tag in their repository, in no live index, attached to nothing live.
create view {s}untagged_manifests as
select nullif(r.registry, '') as registry, nullif(r.repository, '') as repository, h.digest, h.media_type, h.size,
    h.pushed, h.pulled, h.first_seen,
    case
        when exists (select 1 from {s}pending_manifests p where p.digest = h.digest)
            or h.repository_id in (select u.repository_id from {s}unknown_contents u where u.live = 1)
            or exists (select 1 from {s}unknown_contents u where u.repository_id = 0 and u.live = 1)
        then 'contents unknown'
        when h.pushed is null then 'push not seen'
    end as doubt,
    h.repository_id
from {s}holdings h
join {s}repository_names r on r.id = h.repository_id
where h.as_manifest is not null and (h.deleted >= h.as_manifest) is not true
    and not exists (
        select 1 from {s}sightings g
        where g.manifest_digest = h.digest and (g.repository_id = h.repository_id or h.repository_id = 0)
            and g.sighted > coalesce(g.deleted, '0001-01-01') and g.sighted > coalesce(h.deleted, '0001-01-01')
    )
    and not exists (
        select 1 from {s}manifest_blob l
        where l.blob_digest = h.digest and coalesce(l.kind, 'manifest') <> 'subject'
    )
    and not exists (
        select 1 from {s}manifest_blob l where l.manifest_digest = h.digest and l.kind = 'subject'
    );

-- What each repository holds, or held, as a manifest, with what follows from its contents. The size of an image is that
-- of its manifest and of all that this references, each digest once and foreign layers left out; null as soon as one
-- of them is not known. `pulled_in_index` is the newest pull there of an index that it is or was in.
create view {s}manifest_facts as
select m.digest, m.repository_id, m.media_type, m.size, m.pushed, m.pulled, m.first_seen,
    nullif(
        {greatest}(
            coalesce((
                select max(h.pulled)
                from {s}manifest_blob l
                join {s}holdings h on h.digest = l.manifest_digest and h.repository_id = m.repository_id
                where l.blob_digest = m.digest and l.kind = 'manifest'
            ), '0001-01-01'),
            coalesce((
                select max(h.pulled)
                from {s}deleted_manifest_blob l
                join {s}holdings h on h.digest = l.manifest_digest and h.repository_id = m.repository_id
                where l.blob_digest = m.digest and l.kind = 'manifest'
            ), '0001-01-01')
        ),
        '0001-01-01'
    ) as pulled_in_index,
    m.size + case
        when m.media_type in (
            'application/vnd.oci.image.manifest.v1+json', 'application/vnd.docker.distribution.manifest.v2+json'
        ) then (
            select case when count(*) > 0 and count(*) = count(p.size) then cast(sum(p.size) as bigint) end
            from (
                select coalesce(l.size, (select b.size from {s}blobs b where b.digest = l.blob_digest)) as size
                from {s}links l
                where l.manifest_digest = m.digest and coalesce(l.kind, '') not in ('foreign', 'subject')
            ) p
        )
        else (
            select case
                    when count(*) = count(p.size) and min(p.known) = 1 then cast(sum(p.size) as bigint)
                    when count(*) = 0 and exists (select 1 from {s}contents k where k.manifest_digest = m.digest) then 0
                end
            from (
                select a.digest, max(a.size) as size, min(a.known) as known
                from (
                    select l.blob_digest as digest, 1 as known,
                        coalesce(
                            l.size,
                            (select b.size from {s}blobs b where b.digest = l.blob_digest),
                            (select o.size from {s}manifests o where o.digest = l.blob_digest)
                        ) as size
                    from {s}links l
                    where l.manifest_digest = m.digest and coalesce(l.kind, '') not in ('foreign', 'subject')
                    union all
                    select coalesce(c.blob_digest, l.blob_digest),
                        case when k.manifest_digest is null or c.kind = 'manifest' then 0 else 1 end,
                        coalesce(c.size, (select b.size from {s}blobs b where b.digest = c.blob_digest))
                    from {s}links l
                    left join {s}contents k on k.manifest_digest = l.blob_digest
                    left join {s}links c on c.manifest_digest = l.blob_digest
                    where l.manifest_digest = m.digest and l.kind = 'manifest'
                        and coalesce(c.kind, '') not in ('foreign', 'subject')
                ) a
                group by a.digest
            ) p
        )
    end as image_size,
    case
        when m.media_type in (
            'application/vnd.oci.image.manifest.v1+json', 'application/vnd.docker.distribution.manifest.v2+json'
        ) then 1
        else (
            select case when count(*) > 0 then {greatest}(sum(case when l.kind = 'manifest' then 1 else 0 end), 1) end
            from {s}links l
            where l.manifest_digest = m.digest
        )
    end as platforms
from {s}holdings m
where m.as_manifest is not null;

-- `images` is every tag, and every untagged manifest (tag is null); each is a view of its own as well. An image was
-- last used when it, or an index that it is or was in, was last pulled there: by tag, by digest, or by a HEAD check;
-- `pulled_here` leaves the indexes out. Its use is known since `watched_since`. `pushed` is when it was first seen
-- where its push was not.
create view {s}tagged_images as
select t.name, t.registry, t.repository, coalesce(t.tag, '') as tag, t.manifest_digest as digest, m.media_type, t.pushed,
    nullif(
        {greatest}(
            coalesce(t.pulled, '0001-01-01'), coalesce(m.pulled, '0001-01-01'), coalesce(m.pulled_in_index, '0001-01-01')
        ),
        '0001-01-01'
    ) as last_pulled,
    m.image_size as size, m.platforms,
    {greatest}((select since from {s}watching), coalesce(m.first_seen, '0001-01-01')) as watched_since,
    cast(null as text) as doubt,
    nullif({greatest}(coalesce(t.pulled, '0001-01-01'), coalesce(m.pulled, '0001-01-01')), '0001-01-01') as pulled_here
from {s}tags t
join {s}repository_names r on r.registry = t.registry and r.repository = t.repository
join {s}manifest_facts m on m.digest = t.manifest_digest and coalesce(m.repository_id = r.id, false);

create view {s}untagged_images as
select coalesce(u.registry || '/' || u.repository, '') || '@' || u.digest as name, u.registry, u.repository,
    cast(null as text) as tag, u.digest, u.media_type, coalesce(u.pushed, u.first_seen) as pushed,
    nullif({greatest}(coalesce(m.pulled, '0001-01-01'), coalesce(m.pulled_in_index, '0001-01-01')), '0001-01-01')
        as last_pulled,
    m.image_size as size, m.platforms,
    {greatest}((select since from {s}watching), coalesce(u.first_seen, '0001-01-01')) as watched_since,
    u.doubt, m.pulled as pulled_here
from {s}untagged_manifests u
join {s}manifest_facts m on m.digest = u.digest and coalesce(m.repository_id = u.repository_id, false);

create view {s}images as
select * from {s}tagged_images
union all
select * from {s}untagged_images;

-- Blobs that no live manifest of any repository references, once for each repository that holds them.
create view {s}orphaned_blobs as
select nullif(r.registry, '') as registry, nullif(r.repository, '') as repository, h.digest, coalesce(h.size, b.size) as size,
    {greatest}(
        coalesce(h.pushed, h.first_seen),
        coalesce(
            (select max(l.deleted) from {s}deleted_manifest_blob l where l.blob_digest = b.digest),
            h.pushed, h.first_seen
        )
    ) as since,
    case
        when h.repository_id in (select u.repository_id from {s}unknown_contents u where u.live = 1)
            or h.repository_id = 0
            or exists (select 1 from {s}unknown_contents u where u.repository_id = 0 and u.live = 1)
        then 'contents unknown'
        when b.last_push is null then 'push not seen'
    end as doubt,
    h.pushed, h.pulled, h.repository_id
from {s}blobs b
join {s}holdings h on h.digest = b.digest and h.as_blob is not null and (h.deleted >= h.as_blob) is not true
join {s}repository_names r on r.id = h.repository_id
where not exists (select 1 from {s}manifest_blob l where l.blob_digest = b.digest)
    and not exists (select 1 from {s}manifests m where m.digest = b.digest);

-- Live manifests and what is missing of them in their repository. `gone` is when it was deleted there; null is not
-- known: regstat has never seen it there, which is no proof that it is not.
create view {s}broken_manifests as
select m.registry, m.repository, m.digest, m.media_type, x.missing, x.kind, x.size as missing_size,
    case when x.gone is null then 'unknown' else 'gone' end as state, x.gone,
    (
        select {string_agg}(q.tag, ' ')
        from (
            select distinct g.tag {c} as tag
            from {s}sightings g
            join {s}repository_names r on r.id = g.repository_id
            join {s}tags t on t.name = r.registry || '/' || r.repository || ':' || g.tag
            where g.repository_id = m.repository_id
                and g.manifest_digest in (
                    select m.digest
                    union all
                    select l.manifest_digest from {s}manifest_blob l where l.blob_digest = m.digest and l.kind = 'manifest'
                )
            order by tag
        ) q
    ) as tags,
    m.repository_id
from (
    select l.manifest_digest, b.repository_id, l.blob_digest as missing, l.kind, l.size, b.deleted as gone
    from {s}holdings b
    join {s}links l on l.blob_digest = b.digest
    where b.deleted is not null
        and b.deleted >= coalesce(b.as_blob, '0001-01-01')
        and b.deleted >= coalesce(b.as_manifest, '0001-01-01')
        and b.repository_id <> 0
        and coalesce(l.kind, '') not in ('foreign', 'subject')
    union all
    select d.manifest_digest, h.repository_id, d.blob_digest, d.kind, d.size, case when h.repository_id = 0 then d.deleted end
    from {s}deleted_manifest_blob d
    join {s}holdings h on h.digest = d.manifest_digest
    left join {s}holdings b on b.digest = d.blob_digest and b.repository_id = h.repository_id
    where coalesce(d.kind, '') <> 'subject' and (b.deleted is null or h.repository_id = 0)
) x
join {s}held m on m.digest = x.manifest_digest and m.repository_id = x.repository_id and m.kind = 'manifest';

-- How many tags each repository has, and each manifest in a repository.
create view {s}most_tagged as
select registry, repository, count(*) as tags, max(pushed) as pushed from {s}tags group by registry, repository;

create view {s}most_tagged_manifests as
select registry, repository, manifest_digest as digest, count(*) as tags, max(pushed) as pushed
from {s}tags group by registry, repository, manifest_digest;

-- What there is of each repository that holds anything; `bytes` leaves out the objects whose size is not known.
create view {s}repository_totals as
select h.repository_id,
    sum(case when h.kind = 'manifest' then 1 else 0 end) as manifests,
    sum(case when h.kind = 'manifest' then 0 else 1 end) as blobs,
    cast(sum(h.size) as bigint) as bytes,
    count(*) - count(h.size) as unknown_sizes,
    max(case when h.kind = 'manifest' then h.pushed end) as last_push,
    max(case when h.kind = 'manifest' then h.pulled end) as last_pull
from {s}held h
group by h.repository_id;

-- What several repositories of one registry hold, which stores it once.
create view {s}shared as
select h.registry, h.repository, h.digest, h.kind, h.size, h.repository_id
from {s}held h
where exists (
    select 1 from {s}held o
    where o.digest = h.digest and o.repository_id <> h.repository_id
        and coalesce(o.registry, '') = coalesce(h.registry, '')
);

-- Each repository that holds anything. `bytes` has each digest once, `only_here` those that no other repository of the
-- registry holds; both leave out the objects whose size is not known, which `unknown_sizes` counts. Pushes and pulls
-- are those of images.
create view {s}repositories as
select nullif(r.registry, '') as registry, nullif(r.repository, '') as repository, coalesce(t.tags, 0) as tags,
    s.manifests, s.blobs, s.bytes, s.bytes - coalesce(o.bytes, 0) as only_here, s.unknown_sizes, s.last_push, s.last_pull
from {s}repository_totals s
join {s}repository_names r on r.id = s.repository_id
left join {s}most_tagged t on t.registry = r.registry and t.repository = r.repository
left join (
    select h.repository_id, cast(sum(h.size) as bigint) as bytes from {s}shared h group by h.repository_id
) o on o.repository_id = s.repository_id;

-- The audit trail: the newest deletion of each thing in each repository, by whom if the log still says it, and when it
-- was there again. A deletion of a digest that was never seen says not what it was.
create view {s}deletions as
select x.deleted, x.kind, nullif(x.registry, '') as registry, nullif(x.repository, '') as repository, x.tag, x.digest,
    x.size, x.pushed, x.pulled, x.restored,
    e.actor, e.address, e.user_agent as agent
from (
    select h.deleted,
        case when h.as_manifest is not null then 'manifest' when h.as_blob is not null then 'blob' else 'unknown' end as kind,
        r.registry, r.repository, null as tag, h.digest, h.size, h.pushed, h.pulled,
        case
            when h.as_manifest > h.deleted then h.as_manifest
            when h.as_blob > h.deleted then h.as_blob
        end as restored
    from {s}holdings h
    join {s}repository_names r on r.id = h.repository_id
    where h.deleted is not null
    union all
    select d.deleted, 'tag', d.registry, d.repository, d.tag, d.manifest_digest, null, d.pushed, d.pulled,
        (select {greatest}(t.pushed, coalesce(t.pulled, t.pushed)) from {s}tags t where t.name = d.name)
    from {s}deleted_tags d
    union all
    select r.deleted, 'repository', r.registry, r.repository, null, null, null, null, null, null
    from {s}repository_names r
    where r.deleted is not null
) x
left join {s}events e
    on e.timestamp = x.deleted and e.action = 'delete' and e.registry = x.registry and e.repository = x.repository
    and (e.tag = x.tag or (e.tag is null and (e.digest = x.digest or e.digest is null)));

-- The event log, an event a row, with what each counts as: pushes, pulls and checks (HEAD) are of images. A HEAD of a
-- blob is a push that asks whether the blob is there, and counts as nothing.
create view {s}counted_events as
select e.timestamp, date(e.timestamp) as day, e.registry, e.repository, e.tag, e.digest, e.action, e.method,
    e.actor, e.address, e.user_agent as agent,
    case when e.action = 'push' and e.media_type <> 'application/octet-stream' then 1 else 0 end as pushes,
    case
        when e.action = 'pull' and e.media_type <> 'application/octet-stream' and coalesce(e.method, '') <> 'HEAD' then 1
        else 0
    end as pulls,
    case
        when e.action = 'pull' and e.media_type <> 'application/octet-stream' and e.method = 'HEAD' then 1
        else 0
    end as checks,
    case when e.action = 'delete' then 1 else 0 end as deletes,
    case
        when e.action in ('push', 'mount') and coalesce(e.media_type, 'application/octet-stream') = 'application/octet-stream' then 1
        else 0
    end as blob_pushes,
    case
        when e.action = 'pull' and coalesce(e.media_type, 'application/octet-stream') = 'application/octet-stream'
            and coalesce(e.method, '') <> 'HEAD' then 1
        else 0
    end as blob_pulls,
    e.id
from {s}events e;

-- What happened on each day (of UTC) in each repository.
create view {s}activity as
select day, registry, repository, sum(pushes) as pushes, sum(pulls) as pulls, sum(checks) as checks,
    sum(deletes) as deletes, sum(blob_pushes) as blob_pushes, sum(blob_pulls) as blob_pulls
from {s}counted_events
group by day, registry, repository;
