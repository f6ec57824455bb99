"""What the tables must hold, computed from a set of happenings without any of regstat's code.

Slow, small and written from the rules, to be compared with what the daemon's SQL makes of the same events. Times are
whole microseconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple, Optional

Pulled = Optional[int]


class Repository(NamedTuple):
    """A repository of a registry."""

    registry: str
    name: str


class Happening(NamedTuple):
    """An event: `kind` is blob or manifest, empty for a deletion; one without digest and tag is the repository's."""

    action: str
    repository: Repository
    at: int
    kind: str = ""
    digest: str = ""
    tag: str = ""
    method: str = ""
    with_references: bool = False
    own: bool = False


class Lesson(NamedTuple):
    """The contents of a manifest, learned from a repository that was asked for it."""

    digest: str
    repository: Repository


class Tables(NamedTuple):
    """The rows of the live tables, and the keys of what was known and is live no more."""

    blobs: frozenset[tuple[str, int, Pulled]]
    manifests: frozenset[tuple[str, int, Pulled]]
    manifest_blob: frozenset[tuple[str, str]]
    tags: frozenset[tuple[str, str, str, str, str, int, Pulled]]
    dead_blobs: frozenset[str]
    dead_manifests: frozenset[str]
    dead_links: frozenset[tuple[str, str]]
    dead_tags: frozenset[tuple[str, int]]


NEVER = -1
# A link's end, and what it is to the manifest: config, layer, manifest, subject or foreign.
Links = Collection[tuple[str, str]]


def tables(everything: Iterable[Happening | Lesson], contents: Mapping[str, Links], telling: Collection[str]) -> Tables:
    """The tables after these happenings and lessons, in whatever order they came.

    `contents` are those of every manifest; of those in `telling` an event with references tells all but the subject.
    A manifest whose bytes are pushed or pulled as a blob is that manifest all the same.
    """
    heard = list(everything)
    happenings = [one for one in heard if isinstance(one, Happening) and not one.own]
    links = _known_links(happenings, [one for one in heard if isinstance(one, Lesson)], contents, telling)
    seen = [one for one in happenings if one.action != "delete"]
    repositories = {one.repository for one in happenings}
    digests = {one.digest for one in seen} | {end for _, end, _ in links}

    def deleted(repository: Repository, digest: str) -> int:
        return max(
            (
                one.at
                for one in happenings
                if one.action == "delete" and one.repository == repository and not one.tag
                if one.digest in ("", digest)
            ),
            default=NEVER,
        )

    def deleted_tag(repository: Repository, tag: str) -> int:
        return max(
            (
                one.at
                for one in happenings
                if one.action == "delete" and one.repository == repository
                if one.tag == tag or not (one.tag or one.digest)
            ),
            default=NEVER,
        )

    def pushers(repository: Repository, digest: str) -> list[tuple[str, Happening]]:
        """The pushes that prove the presence of a digest by referring to it."""
        return [
            (kind, one)
            for manifest, end, kind in links
            if end == digest and kind not in ("foreign", "subject")
            for one in seen
            if one.repository == repository and one.digest == manifest and one.action == "push"
        ]

    def proofs(repository: Repository, digest: str, as_kind: str) -> list[int]:
        return [
            one.at for one in seen if one.repository == repository and one.digest == digest and one.kind == as_kind
        ] + [
            one.at
            for kind, one in pushers(repository, digest)
            if ("manifest" if kind == "manifest" else "blob") == as_kind
        ]

    def is_live(digest: str, as_kind: str) -> bool:
        return any(
            max(proofs(repository, digest, as_kind), default=NEVER) > deleted(repository, digest)
            for repository in repositories
        )

    def first_seen(repository: Repository, digest: str) -> list[int]:
        """When a repository first showed the digest, by its own events or the pushes of a manifest that names it."""
        times = [one.at for one in seen if one.repository == repository and one.digest == digest]
        times += [one.at for _, one in pushers(repository, digest)]
        return sorted(times)[:1]

    def pushed(digest: str) -> int:
        pushes = [one.at for one in seen if one.digest == digest and one.action == "push"]
        return max(pushes) if pushes else min(at for where in repositories for at in first_seen(where, digest))

    def pulled(digest: str) -> Pulled:
        users = {digest} | {
            manifest for manifest, end, kind in links if end == digest and kind in ("config", "layer", "foreign")
        }
        return max(
            (
                one.at
                for one in seen
                if one.action == "pull" and one.digest in users
                if one.kind == "manifest" or one.method != "HEAD"
            ),
            default=None,
        )

    live = {kind: {digest for digest in digests if is_live(digest, kind)} for kind in ("blob", "manifest")}
    known = {
        kind: {digest for digest in digests if any(proofs(repository, digest, kind) for repository in repositories)}
        for kind in live
    }
    risen = {
        (manifest, end)
        for manifest, end, _ in links
        if manifest in live["manifest"] and (end in live["blob"] or end in live["manifest"])
    }

    live_tags = set()
    dead_tags = set()
    for repository, tag in {(one.repository, one.tag) for one in seen if one.tag}:
        sightings = [one for one in seen if (one.repository, one.tag) == (repository, tag)]
        newest = max(sightings, key=lambda one: (one.at, one.digest))
        own_end = deleted_tag(repository, tag)
        manifest_end = deleted(repository, newest.digest)
        name = f"{repository.registry}/{repository.name}:{tag}"
        if newest.at > max(own_end, manifest_end):
            pushes = [one.at for one in sightings if one.action == "push"]
            pulls = [one.at for one in sightings if one.action == "pull"]
            live_tags.add(
                (
                    name,
                    *repository,
                    tag,
                    newest.digest,
                    max(pushes) if pushes else min(one.at for one in sightings),
                    max(pulls, default=None),
                )
            )
        else:
            dead_tags.add((name, own_end if own_end >= newest.at else manifest_end))

    return Tables(
        frozenset((digest, pushed(digest), pulled(digest)) for digest in live["blob"]),
        frozenset((digest, pushed(digest), pulled(digest)) for digest in live["manifest"]),
        frozenset(risen),
        frozenset(live_tags),
        frozenset(known["blob"] - live["blob"]),
        frozenset(known["manifest"] - live["manifest"]),
        frozenset((manifest, end) for manifest, end, kind in links if kind != "foreign") - risen,
        frozenset(dead_tags),
    )


def last_used(
    everything: Iterable[Happening | Lesson],
    contents: Mapping[str, Links],
    telling: Collection[str],
    repository: Repository,
    digest: str,
) -> Pulled:
    """The newest pull there of a manifest, or of an index that is known to hold it or to have held it."""
    heard = list(everything)
    happenings = [one for one in heard if isinstance(one, Happening) and not one.own]
    links = _known_links(happenings, [one for one in heard if isinstance(one, Lesson)], contents, telling)
    users = {digest} | {manifest for manifest, end, kind in links if end == digest and kind != "subject"}
    return max(
        (
            one.at
            for one in happenings
            if one.action == "pull" and one.repository == repository and one.digest in users
            if one.kind == "manifest" or one.method != "HEAD"
        ),
        default=None,
    )


def _known_links(
    happenings: Iterable[Happening],
    lessons: Iterable[Lesson],
    contents: Mapping[str, Links],
    telling: Collection[str],
) -> set[tuple[str, str, str]]:
    """Manifest, end and kind of each link that somebody told of."""
    told = {one.digest for one in happenings if one.with_references and one.digest in telling}
    learned = {one.digest for one in lessons}
    return {
        (manifest, end, kind)
        for manifest in told | learned
        for end, kind in contents[manifest]
        if manifest in learned or kind != "subject"
    }
