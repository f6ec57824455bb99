-- Manifests that are due, the longest waiting first.
select p.digest, p.repository_id, r.registry, r.repository, p.url, p.host, p.attempts
from {s}pending_manifests p
join {s}repository_names r on r.id = p.repository_id
where p.given_up is null and p.next_attempt <= ?
    and r.registry not in ({busy})
order by p.next_attempt, p.digest
limit ?{lock};
