"""An event, or the contents of a manifest -> changes to facts. Pure: what events mean is said here and nowhere else.

A fact is the newest time of its kind (pushed, pulled, held, sighted, deleted) for its key, so changes may be applied
in any order and any number of times: the result is the same.
"""

from __future__ import annotations

from typing import NamedTuple

from regstat_lib.envelope import Event
from regstat_lib.manifest import INDEX_TYPES, OCTET_STREAM, Contents, contents_of_event

USER_AGENT = "regstat/"

# Manifests of which the list of references in an event tells what each is (config, layer or child): a guess about any
# other could contradict what the manifest itself says later, and the tables would depend on which came first.
KNOWN_LAYOUTS = INDEX_TYPES | {
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/vnd.docker.distribution.manifest.v2+json",
}


class Repository(NamedTuple):
    """A repository of a registry, the registry under the name that equivalent ones share."""

    registry: str
    name: str


class Holding(NamedTuple):
    """What is known of a digest in a repository: times as `Event.timestamp` writes them, None when never."""

    pushed: str | None
    pulled: str | None
    first_seen: str | None
    as_blob: str | None  # the newest proof that the repository held it as a blob
    as_manifest: str | None  # and as a manifest
    deleted: str | None
    size: int | None
    media_type: str | None
    first_pushed: str | None = None


class Sighting(NamedTuple):
    """What is known of a tag in a repository: where it was newest seen to point to, and its times."""

    sighted: str | None
    manifest_digest: str | None
    pushed: str | None
    pulled: str | None
    first_seen: str | None
    deleted: str | None


class Pending(NamedTuple):
    """A manifest whose contents are to be asked for, and what the event said of where."""

    url: str
    host: str


class Changes(NamedTuple):
    """What one event changes: at most one fact of each kind, all about one repository."""

    repository: Repository
    digest: str = ""
    holding: Holding | None = None
    tag: str = ""
    sighting: Sighting | None = None
    repository_deleted: str | None = None
    contents: Contents | None = None
    pending: Pending | None = None


def is_own(event: Event) -> bool:
    """Whether regstat itself caused the event, by asking the registry for a manifest: such a pull is no use."""
    return event.user_agent.startswith(USER_AGENT)


def is_manifest(event: Event) -> bool:
    """Whether a push, pull or mount is about a manifest; a blob's media type is always octet-stream (or missing)."""
    if event.media_type and event.media_type != OCTET_STREAM:
        return event.action != "mount"
    return bool(event.tag) or "/manifests/" in event.url


def changes_of(event: Event, repository: Repository, at: str) -> Changes:
    """What `event` changes in `repository`; `at` is its time, or the time it came at when it has none."""
    if event.action == "delete":
        return _deletion(event, repository, at)
    if not is_manifest(event):
        return Changes(
            repository,
            event.digest,
            Holding(
                pushed=at if event.action == "push" else None,
                # What a push does to ask whether a blob is there is no use of it.
                pulled=at if event.action == "pull" and event.method != "HEAD" else None,
                first_seen=at,
                as_blob=at,
                as_manifest=None,
                deleted=None,
                size=event.size,
                media_type=None,
                first_pushed=at if event.action == "push" else None,
            ),
        )
    pushed = at if event.action == "push" else None
    pulled = at if event.action == "pull" else None
    contents = None
    if event.references is not None and event.media_type in KNOWN_LAYOUTS:
        contents = contents_of_event(event.media_type, event.references)
    return Changes(
        repository,
        event.digest,
        Holding(pushed, pulled, at, None, at, None, event.size, event.media_type or None, pushed),
        event.tag,
        Sighting(at, event.digest, pushed, pulled, at, None) if event.tag else None,
        None,
        contents,
        None if contents is not None and contents.complete else Pending(event.url, event.host),
    )


def _deletion(event: Event, repository: Repository, at: str) -> Changes:
    """A deletion says what by what it names: a tag, a digest (of a manifest or of a blob), or the repository alone.

    One that names a tag and a digest is taken as the tag's: of the two readings the one that ends less.
    """
    if event.tag:
        return Changes(repository, tag=event.tag, sighting=Sighting(None, None, None, None, None, at))
    if event.digest:
        return Changes(repository, event.digest, Holding(None, None, None, None, None, at, None, None))
    return Changes(repository, repository_deleted=at)
