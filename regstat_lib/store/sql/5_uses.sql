-- Version 5: that an image was used in an index is kept with it, when the index is pulled, and not looked for in each
-- question.

-- The newest pull in that repository of an index that it is or was in.
alter table {s}holdings {add_column} pulled_in_index timestamp;

insert into {s}holdings (digest, repository_id, pulled_in_index)
select h.digest, h.repository_id, max(i.pulled)
from {s}links l
join {s}holdings i on i.digest = l.manifest_digest
join {s}holdings h on h.digest = l.blob_digest and h.repository_id = i.repository_id
where l.kind = 'manifest' and i.pulled is not null
group by h.digest, h.repository_id
on conflict (digest, repository_id) do update set pulled_in_index = excluded.pulled_in_index;

-- The size of an image is that of its manifest and of all its parts, each digest once; null as soon as one of them is
-- not known.
create {or_replace}view {s}manifest_facts as
select m.digest, m.repository_id, m.media_type, m.size, m.pushed, m.pulled, m.first_seen,
    m.pulled_in_index,
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

-- A "case ... is not null" is a condition that Postgres takes to be true of nearly every row, as this is. Of a digest
-- that several tables have one is shown, since a million rows are sorted with all that they come from.
create {or_replace}view {s}tagged_images as
select t.name, t.registry, t.repository, coalesce(t.tag, '') as tag, m.digest, m.media_type, t.pushed,
    nullif(
        {greatest}(coalesce(t.pulled, '0001-01-01'), coalesce(m.pulled, '0001-01-01'), coalesce(m.pulled_in_index, '0001-01-01')),
        '0001-01-01'
    ) as last_pulled,
    m.image_size as size, m.platforms,
    {greatest}((select since from {s}watching), coalesce(m.first_seen, '0001-01-01')) as watched_since,
    cast(null as text) as doubt,
    nullif({greatest}(coalesce(t.pulled, '0001-01-01'), coalesce(m.pulled, '0001-01-01')), '0001-01-01') as pulled_here
from {s}tags t
join {s}manifest_facts m on m.digest = t.manifest_digest
join {s}repository_names r on r.id = m.repository_id
    and case when r.registry = t.registry and r.repository = t.repository then 1 end is not null;
