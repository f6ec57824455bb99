-- Version 3: answers that take the time of what they say, not of what there is.
--
-- What follows from the contents of a manifest never changes, since its digest is that of its contents: it is kept
-- beside them and not added up again for each question.

-- The bytes of all that a manifest references, and for how many platforms it is; null is "not known".
alter table {s}contents {add_column} size bigint;
alter table {s}contents {add_column} platforms bigint;

-- All that a manifest is made of beside itself: what it references, and of an index what its children reference; foreign
-- layers and subjects left out. With `known` 0 there is more, of which nothing is known; a digest may come twice.
insert into {s}contents (manifest_digest, complete, size)
select k.manifest_digest, k.complete, cast(sum(p.size) as bigint)
from (
    select a.manifest_digest, max(a.size) as size, min(a.known) as known
    from (
        select l.manifest_digest, l.blob_digest as digest, l.size, 1 as known
        from {s}links l
        where coalesce(l.kind, '') not in ('foreign', 'subject')
        union all
        select l.manifest_digest, c.blob_digest, c.size, case when c.kind = 'manifest' then 0 else 1 end
        from {s}links l
        join {s}links c on c.manifest_digest = l.blob_digest
        where l.kind = 'manifest' and coalesce(c.kind, '') not in ('foreign', 'subject')
        union all
        select l.manifest_digest, l.blob_digest, null, 0
        from {s}links l
        where l.kind = 'manifest' and not exists (select 1 from {s}contents c where c.manifest_digest = l.blob_digest)
    ) a
    group by a.manifest_digest, a.digest
) p
join {s}contents k on k.manifest_digest = p.manifest_digest
where true
group by k.manifest_digest, k.complete
having count(*) = count(p.size) and min(p.known) = 1
on conflict (manifest_digest) do update set size = excluded.size;

insert into {s}contents (manifest_digest, complete, platforms)
select k.manifest_digest, k.complete, {greatest}(count(case when l.kind = 'manifest' then 1 end), 1)
from {s}contents k
join {s}links l on l.manifest_digest = k.manifest_digest
where coalesce(l.kind, '') <> 'foreign'
group by k.manifest_digest, k.complete
on conflict (manifest_digest) do update set platforms = excluded.platforms;

-- What is deleted is little of what happens: the index does not grow with a push or a pull.
create index {index_schema}events_deletions on {on_schema}events (timestamp) where action = 'delete';

-- The views that follow say what they said before, in words of which plans can be made for the first twenty rows and
-- for all of them.

-- The size of an image is that of its manifest and of all its parts, each digest once; null as soon as one of them is
-- not known. `pulled_in_index` is the newest pull there of an index that it is or was in.
create {or_replace}view {s}manifest_facts as
select m.digest, m.repository_id, m.media_type, m.size, m.pushed, m.pulled, m.first_seen,
    (
        select max(p.pulled)
        from (
            select h.pulled
            from {s}manifest_blob l
            join {s}holdings h on h.digest = l.manifest_digest and h.repository_id = m.repository_id
            where l.blob_digest = m.digest and l.kind = 'manifest'
            union all
            select h.pulled
            from {s}deleted_manifest_blob l
            join {s}holdings h on h.digest = l.manifest_digest and h.repository_id = m.repository_id
            where l.blob_digest = m.digest and l.kind = 'manifest'
        ) p
    ) as pulled_in_index,
    -- Schema 1 does not say the sizes of its layers: those of the blobs that are there will do.
    m.size + coalesce(k.size, case when k.manifest_digest is not null then (
        select case
                when count(*) = 0 and coalesce(m.media_type, '') not in (
                    'application/vnd.oci.image.manifest.v1+json', 'application/vnd.docker.distribution.manifest.v2+json'
                ) then 0
                when count(*) = count(p.size) then cast(sum(p.size) as bigint)
            end
        from (
            select case
                    when coalesce(l.kind, '') <> 'manifest'
                    then coalesce(l.size, (select b.size from {s}blobs b where b.digest = l.blob_digest))
                end as size
            from {s}manifest_blob l
            where l.manifest_digest = m.digest and coalesce(l.kind, '') not in ('foreign', 'subject')
            union all
            select case when coalesce(l.kind, '') <> 'manifest' then l.size end
            from {s}deleted_manifest_blob l
            where l.manifest_digest = m.digest and coalesce(l.kind, '') not in ('foreign', 'subject')
        ) p
    ) end) as image_size,
    case
        when m.media_type in (
            'application/vnd.oci.image.manifest.v1+json', 'application/vnd.docker.distribution.manifest.v2+json'
        ) then 1
        else k.platforms
    end as platforms,
    m.as_manifest, m.deleted
from {s}holdings m
left join {s}contents k on k.manifest_digest = m.digest
where m.as_manifest is not null;

create {or_replace}view {s}tagged_images as
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
join {s}manifest_facts m on m.digest = t.manifest_digest
join {s}repository_names r on r.id = m.repository_id
    and coalesce(r.registry = t.registry and r.repository = t.repository, false);

create {or_replace}view {s}untagged_manifests as
select nullif(r.registry, '') as registry, nullif(r.repository, '') as repository, h.digest, h.media_type, h.size,
    h.pushed, h.pulled, h.first_seen,
    case
        when exists (select 1 from {s}pending_manifests p where p.digest = h.digest)
            or h.repository_id in (select u.repository_id from {s}unknown_contents u where u.live = 1)
            or exists (select 1 from {s}unknown_contents u where u.repository_id = 0 and u.live = 1)
        then 'contents unknown'
        when h.pushed is null then 'push not seen'
    end as doubt,
    h.repository_id, h.pulled_in_index, h.image_size, h.platforms
from {s}manifest_facts h
join {s}repository_names r on r.id = h.repository_id
where (h.deleted >= h.as_manifest) is not true
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

create {or_replace}view {s}untagged_images as
select coalesce(u.registry || '/' || u.repository, '') || '@' || u.digest as name, u.registry, u.repository,
    cast(null as text) as tag, u.digest, u.media_type, coalesce(u.pushed, u.first_seen) as pushed,
    nullif({greatest}(coalesce(u.pulled, '0001-01-01'), coalesce(u.pulled_in_index, '0001-01-01')), '0001-01-01')
        as last_pulled,
    u.image_size as size, u.platforms,
    {greatest}((select since from {s}watching), coalesce(u.first_seen, '0001-01-01')) as watched_since,
    u.doubt, u.pulled as pulled_here
from {s}untagged_manifests u;

create {or_replace}view {s}images as
select * from {s}tagged_images
union all
select * from {s}untagged_images;

create {or_replace}view {s}orphaned_blobs as
select nullif(r.registry, '') as registry, nullif(r.repository, '') as repository, h.digest,
    coalesce(h.size, (select b.size from {s}blobs b where b.digest = h.digest)) as size,
    {greatest}(
        coalesce(h.pushed, h.first_seen),
        coalesce(
            (select max(l.deleted) from {s}deleted_manifest_blob l where l.blob_digest = h.digest),
            h.pushed, h.first_seen
        )
    ) as since,
    case
        when h.repository_id in (select u.repository_id from {s}unknown_contents u where u.live = 1)
            or h.repository_id = 0
            or exists (select 1 from {s}unknown_contents u where u.repository_id = 0 and u.live = 1)
        then 'contents unknown'
        when (select b.last_push from {s}blobs b where b.digest = h.digest) is null then 'push not seen'
    end as doubt,
    h.pushed, h.pulled, h.repository_id
from {s}holdings h
join {s}repository_names r on r.id = h.repository_id
where h.as_blob is not null and (h.deleted >= h.as_blob) is not true
    and not exists (select 1 from {s}manifest_blob l where l.blob_digest = h.digest)
    and not exists (select 1 from {s}manifests m where m.digest = h.digest);

-- What was deleted in a repository and is not there again.
create view {s}deleted_holdings as
select h.digest, h.repository_id, h.as_blob, h.as_manifest, h.deleted
from {s}holdings h
where h.deleted is not null
    and h.deleted >= coalesce(h.as_blob, '0001-01-01')
    and h.deleted >= coalesce(h.as_manifest, '0001-01-01')
    and h.repository_id <> 0;

-- A manifest is a part of indexes only, which a small index finds.
create {or_replace}view {s}broken_manifests as
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
    from {s}deleted_holdings b
    join {s}links l on l.blob_digest = b.digest
    where (b.as_manifest is null or b.as_blob is not null) and coalesce(l.kind, '') not in ('foreign', 'subject')
    union all
    select l.manifest_digest, b.repository_id, l.blob_digest, l.kind, l.size, b.deleted
    from {s}deleted_holdings b
    join {s}links l on l.blob_digest = b.digest
    where b.as_manifest is not null and b.as_blob is null and l.kind = 'manifest'
    union all
    select d.manifest_digest, h.repository_id, d.blob_digest, d.kind, d.size, case when h.repository_id = 0 then d.deleted end
    from {s}deleted_manifest_blob d
    join {s}holdings h on h.digest = d.manifest_digest
    left join {s}holdings b on b.digest = d.blob_digest and b.repository_id = h.repository_id
    where coalesce(d.kind, '') <> 'subject' and (b.deleted is null or h.repository_id = 0)
) x
join {s}held m on m.digest = x.manifest_digest and m.repository_id = x.repository_id and m.kind = 'manifest';

-- What several repositories of one registry hold, which stores it once. That two registries are the same is worded as
-- no equality: joined on digests alone, the hashed rows are fewer bytes.
create {or_replace}view {s}shared as
select h.registry, h.repository, h.digest, h.kind, h.size, h.repository_id
from {s}held h
where exists (
    select 1 from {s}held o
    where o.digest = h.digest and o.repository_id <> h.repository_id
        and coalesce(coalesce(o.registry, '') = coalesce(h.registry, ''), false)
);

create {or_replace}view {s}deletions as
select x.deleted, x.kind, nullif(x.registry, '') as registry, nullif(x.repository, '') as repository, x.tag, x.digest,
    x.size, x.pushed, x.pulled,
    case when x.kind = 'tag' then (
        select {greatest}(t.pushed, coalesce(t.pulled, t.pushed)) from {s}tags t where t.name = x.name
    ) else x.restored end as restored,
    e.actor, e.address, e.user_agent as agent
from (
    select h.deleted,
        case when h.as_manifest is not null then 'manifest' when h.as_blob is not null then 'blob' else 'unknown' end as kind,
        r.registry, r.repository, null as tag, h.digest, h.size, h.pushed, h.pulled,
        case
            when h.as_manifest > h.deleted then h.as_manifest
            when h.as_blob > h.deleted then h.as_blob
        end as restored, null as name
    from {s}holdings h
    join {s}repository_names r on r.id = h.repository_id
    where h.deleted is not null
    union all
    select d.deleted, 'tag', d.registry, d.repository, d.tag, d.manifest_digest, null, d.pushed, d.pulled, null, d.name
    from {s}deleted_tags d
    union all
    select r.deleted, 'repository', r.registry, r.repository, null, null, null, null, null, null, null
    from {s}repository_names r
    where r.deleted is not null
) x
left join {s}events e
    on e.timestamp = x.deleted and e.action = 'delete' and e.registry = x.registry and e.repository = x.repository
    and (e.tag = x.tag or (e.tag is null and (e.digest = x.digest or e.digest is null)));
