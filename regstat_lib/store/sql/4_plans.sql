-- Version 4: the answers of before, in words of which plans can be made that use every processor, or take a repository
-- alone.

-- Tags that the original left under another name than registry/repository:tag: few, if there are any.
create index {index_schema}tags_of_other_names on {on_schema}tags (registry, repository)
where name <> registry || '/' || repository || ':' || coalesce(tag, '');

-- Where and when an index that a manifest is or was in was last pulled.
create view {s}index_pulls as
select l.blob_digest as digest, h.repository_id, h.pulled, l.manifest_digest as index_digest
from {s}links l
join {s}holdings h on h.digest = l.manifest_digest
where l.kind = 'manifest' and h.pulled is not null;

-- The newest of them for each manifest and repository. It groups nothing, so that a plan may ask for a manifest alone.
create view {s}newest_index_pulls as
select p.digest, p.repository_id, p.pulled
from {s}index_pulls p
where not exists (
    select 1 from {s}index_pulls o
    where o.digest = p.digest and o.repository_id = p.repository_id and o.index_digest <> p.index_digest
        and (o.pulled > p.pulled or (o.pulled = p.pulled and o.index_digest > p.index_digest))
);

-- The size of an image is that of its manifest and of all its parts, each digest once; null as soon as one of them is
-- not known. `pulled_in_index` is the newest pull there of an index that it is or was in: a subquery, which costs
-- nothing where it is not asked for.
create {or_replace}view {s}manifest_facts as
select m.digest, m.repository_id, m.media_type, m.size, m.pushed, m.pulled, m.first_seen,
    (
        select max(p.pulled) from {s}index_pulls p where p.digest = m.digest and p.repository_id = m.repository_id
    ) as pulled_in_index,
    -- Schema 1 does not say the sizes of its layers: those of the blobs that are there will do.
    m.size + coalesce(k.size, case when k.complete is not null then (
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

-- The pulls of indexes are joined: as a subquery they would have to be looked up in one process, an image at a time. A
-- "case ... is not null" is a condition that Postgres takes to be true of nearly every row, as this is. Of a digest
-- that several tables have one is shown, since a million rows are sorted with all that they come from.
create {or_replace}view {s}tagged_images as
select t.name, t.registry, t.repository, coalesce(t.tag, '') as tag, m.digest, m.media_type, t.pushed,
    nullif(
        {greatest}(coalesce(t.pulled, '0001-01-01'), coalesce(m.pulled, '0001-01-01'), coalesce(p.pulled, '0001-01-01')),
        '0001-01-01'
    ) as last_pulled,
    m.image_size as size, m.platforms,
    {greatest}((select since from {s}watching), coalesce(m.first_seen, '0001-01-01')) as watched_since,
    cast(null as text) as doubt,
    nullif({greatest}(coalesce(t.pulled, '0001-01-01'), coalesce(m.pulled, '0001-01-01')), '0001-01-01') as pulled_here
from {s}tags t
join {s}manifest_facts m on m.digest = t.manifest_digest
join {s}repository_names r on r.id = m.repository_id
    and case when r.registry = t.registry and r.repository = t.repository then 1 end is not null
left join {s}newest_index_pulls p on p.digest = m.digest and p.repository_id = m.repository_id;

-- What there is of each repository that holds anything; `bytes` leaves out the objects whose size is not known, and
-- `shared_bytes` are those of what another repository of the registry holds too. It is one grouping of one column, so
-- that a condition on the repository goes down to the index.
create {or_replace}view {s}repository_totals as
select x.repository_id, sum(x.manifests) as manifests, sum(x.blobs) as blobs, cast(sum(x.size) as bigint) as bytes,
    sum(x.unknown_sizes) as unknown_sizes, max(x.pushed) as last_push, max(x.pulled) as last_pull,
    cast(sum(x.shared_size) as bigint) as shared_bytes
from (
    select h.repository_id,
        case when h.kind = 'manifest' then 1 else 0 end as manifests,
        case when h.kind = 'manifest' then 0 else 1 end as blobs,
        h.size,
        case when h.size is null then 1 else 0 end as unknown_sizes,
        case when h.kind = 'manifest' then h.pushed end as pushed,
        case when h.kind = 'manifest' then h.pulled end as pulled,
        cast(0 as bigint) as shared_size
    from {s}held h
    union all
    select h.repository_id, 0, 0, null, 0, null, null, h.size from {s}shared h
) x
group by x.repository_id;

-- Each repository that holds anything. `bytes` has each digest once, `only_here` those that no other repository of the
-- registry holds; both leave out the objects whose size is not known, which `unknown_sizes` counts. Pushes and pulls
-- are those of images. The names of a repository's tags are those from its own and ":" on, up to the character
-- after ":", which an index counts; those of other names have one of their own.
create {or_replace}view {s}repositories as
select nullif(r.registry, '') as registry, nullif(r.repository, '') as repository,
    (
        select count(*) from {s}tags t
        where t.name {c} >= r.registry || '/' || r.repository || ':'
            and t.name {c} < r.registry || '/' || r.repository || ';'
    ) + (
        select count(*) from {s}tags t
        where t.registry = r.registry and t.repository = r.repository
            and t.name <> t.registry || '/' || t.repository || ':' || coalesce(t.tag, '')
            and not (
                t.name {c} >= r.registry || '/' || r.repository || ':'
                and t.name {c} < r.registry || '/' || r.repository || ';'
            )
    ) as tags,
    s.manifests, s.blobs, s.bytes, s.bytes - s.shared_bytes as only_here, s.unknown_sizes, s.last_push, s.last_pull,
    s.repository_id
from {s}repository_totals s
join {s}repository_names r on r.id = s.repository_id;

-- Those repositories without what there is of them, which is quick to say of the first ones.
create view {s}repository_places as
select nullif(r.registry, '') as registry, nullif(r.repository, '') as repository, r.id as repository_id
from {s}repository_names r
where r.id in (select h.repository_id from {s}held h);
