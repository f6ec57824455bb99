-- Version 4: the answers of before, in words of which plans can be made that use every processor, or take a repository
-- alone.

-- Tags that the original left under another name than registry/repository:tag: few, if there are any.
create index {index_schema}tags_of_other_names on {on_schema}tags (registry, repository)
where name <> registry || '/' || repository || ':' || coalesce(tag, '');

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
