"""Bytes of a webhook request -> events.

The format is that of Docker distribution's notifications (`notifications/event.go`): a JSON object
with a list `events`. Senders differ, so this room is tolerant: what it cannot understand it sets
aside one event at a time, and only a body that is no envelope at all is an error.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

ACTIONS = frozenset(("push", "pull", "mount", "delete"))

# OCI image specification, descriptor.md, "Digests". No length is asked for: registries know algorithms that we do not.
_DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[A-Za-z0-9=_-]+\Z")
# RFC 3339, section 5.6, with any number of fractional digits.
_TIMESTAMP = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:([Zz])|([+-])(\d\d):(\d\d))\Z", re.ASCII
)
# The same as nearly every registry writes it, microseconds and all, on a day that every month has.
_USUAL_TIMESTAMP = re.compile(
    r"([1-9]\d{3}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8]))T((?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{6})\d*Z\Z", re.ASCII
)
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
# A row of a Postgres B-tree index holds 2,704 bytes at most; the longest key is registry/repository:tag.
_MAX_DIGEST, _MAX_NAME, _MAX_TAG, _MAX_TEXT = 512, 600, 512, 4096
# The greatest whole number that every reader of JSON keeps (RFC 8259, section 6); a thousand add up to a bigint.
_MAX_SIZE = 2**53 - 1


class NotAnEnvelope(ValueError):
    """The body is no envelope of events; the text says what was expected instead."""


class Reference(NamedTuple):
    """A descriptor by which a manifest names another object (OCI image specification, descriptor.md)."""

    digest: str
    media_type: str
    size: int | None
    foreign: bool  # has `urls`: the registry need not hold it


class Event(NamedTuple):
    """One event of a registry, as it was sent; absent texts are empty.

    `timestamp` is UTC as `YYYY-MM-DD HH:MM:SS.ffffff`, so that the order of texts is the order of times, and None
    when the sender gave none (Go's zero time counts as none). `references` is None when the sender gave none.
    """

    id: str
    timestamp: str | None
    action: str
    host: str
    repository: str
    digest: str
    tag: str
    media_type: str
    size: int | None
    url: str
    references: tuple[Reference, ...] | None
    from_repository: str
    method: str
    actor: str
    address: str
    user_agent: str
    source: str


class SetAside(NamedTuple):
    """An event that could not be understood: why, and the event as JSON in ASCII."""

    reason: str
    event: str


class Envelope(NamedTuple):
    """What a request brought: the events that were understood, in their order, and those that were not."""

    events: tuple[Event, ...]
    set_aside: tuple[SetAside, ...]


class _NotUnderstood(ValueError):
    pass


def parse_envelope(body: bytes) -> Envelope:
    """The events of a request's body.

    Raises NotAnEnvelope when the body is not JSON or not an object with a list named `events`. An event that is
    not understood is set aside and the rest of the envelope is not affected.
    """
    document = _json(body)
    events = document.get("events") if isinstance(document, dict) else None
    if not isinstance(events, list):
        raise NotAnEnvelope(
            'The body is JSON but no envelope of registry notifications: expected an object like {"events": [...]}.'
        )
    # Only an escape, the byte that starts an encoded surrogate, or an encoding other than UTF-8 (it has NULs) can bring
    # a character that a database cannot hold.
    unchecked = (b"\\" in body and b"\\u" in body) or b"\xed" in body or b"\0" in body
    understood = []
    set_aside = []
    for raw in events:
        try:
            understood.append(_event(raw, unchecked))
        except _NotUnderstood as error:
            set_aside.append(SetAside(str(error), _as_json(raw)))
    return Envelope(tuple(understood), tuple(set_aside))


def event_to_json(event: Event) -> str:
    """The event as JSON in ASCII, for keeping it where it cannot be recorded."""
    return _as_json({name: value for name, value in event._asdict().items() if value not in ("", None)})


def _json(body: bytes) -> Any:
    try:
        try:
            return json.loads(body)
        except ValueError:
            # Newer Pythons refuse integers of thousands of digits (CVE-2020-10735); one absurd number is no
            # reason to refuse the envelope around it.
            return json.loads(body, parse_int=_bounded_int)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise NotAnEnvelope(
            f'The body is not JSON ({reason}): expected an envelope of registry notifications like {{"events": [...]}}.'
        ) from None


def _bounded_int(digits: str) -> int | None:
    return int(digits) if len(digits) <= 20 else None


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=True, default=str)
    except (ValueError, RecursionError):
        return '"this event cannot be written as JSON again"'


def _event(raw: Any, unchecked: bool) -> Event:
    if not isinstance(raw, dict):
        raise _NotUnderstood("it is not an object")
    action = raw.get("action")
    if not isinstance(action, str) or action not in ACTIONS:
        raise _NotUnderstood("its action is none of push, pull, mount and delete")
    target = raw.get("target")
    if not isinstance(target, dict):
        raise _NotUnderstood("it has no target")
    request = raw.get("request")
    if not isinstance(request, dict):
        request = {}
    actor = raw.get("actor")
    source = raw.get("source")

    repository = _text(target, "repository", _MAX_NAME)
    digest = _text(target, "digest", _MAX_DIGEST)
    tag = _text(target, "tag", _MAX_TAG)
    if not repository:
        raise _NotUnderstood("its target names no repository")
    if digest:
        if _DIGEST.match(digest) is None:
            raise _NotUnderstood("its target's digest is not of the form algorithm:hex")
    elif action != "delete":
        raise _NotUnderstood(f"it is a {action} without a digest")
    url = _long_text(target, "url")
    host = _text(request, "host", _MAX_NAME) or _host_of(url)
    if not host:
        raise _NotUnderstood("neither its request's host nor its target's url names a registry")
    if ":" in repository or ":" in tag or "/" in tag or "/" in host:
        # The key of a tag is registry/repository:tag; two that differ must not share one.
        raise _NotUnderstood("its registry, repository or tag has a character that no registry allows there")
    references = target.get("references")
    event = Event(
        id=_text(raw, "id", _MAX_DIGEST) or _made_up_id(raw),
        timestamp=_timestamp(raw.get("timestamp")),
        action=action,
        host=host,
        repository=repository,
        digest=digest,
        tag=tag,
        media_type=_text(target, "mediaType", _MAX_NAME),
        size=size_of(target.get("size", target.get("length"))),
        url=url,
        references=None if references is None else parse_references(references),
        from_repository=_text(target, "fromRepository", _MAX_NAME),
        method=_long_text(request, "method"),
        actor=_long_text(actor, "name") if isinstance(actor, dict) else "",
        address=_long_text(request, "addr"),
        user_agent=_long_text(request, "useragent"),
        source=_long_text(source, "addr") if isinstance(source, dict) else "",
    )
    if unchecked:
        for value in event:
            if isinstance(value, str) and _UNSTORABLE.search(value):
                raise _NotUnderstood("it has a character that a database cannot hold (NUL or half of a surrogate pair)")
    return event


def _text(mapping: dict[str, Any], key: str, limit: int) -> str:
    value = mapping.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _NotUnderstood(f"its {key} is not a text")
    if len(value) > limit or (len(value) * 4 > limit and len(value.encode("utf-8", "surrogatepass")) > limit):
        raise _NotUnderstood(f"its {key} is longer than {limit} bytes")
    return value


def _long_text(mapping: dict[str, Any], key: str) -> str:
    """A text that is only noted: cut when too long, empty when it is something else."""
    value = mapping.get(key)
    return value[:_MAX_TEXT] if isinstance(value, str) else ""


def size_of(value: object) -> int | None:
    """A size in bytes, or None when `value` is none that a database can hold."""
    if type(value) is int and 0 <= value <= _MAX_SIZE:
        return value
    return None


def is_digest(value: object) -> bool:
    """Whether `value` is a digest by its form (OCI image specification, descriptor.md, "Digests")."""
    return isinstance(value, str) and len(value) <= _MAX_DIGEST and _DIGEST.match(value) is not None


def parse_references(references: object) -> tuple[Reference, ...]:
    """The descriptors of a list that came from outside; entries that are none are left out."""
    if not isinstance(references, list):
        return ()
    found = []
    for descriptor in references:
        if isinstance(descriptor, dict) and is_digest(descriptor.get("digest")):
            media_type = descriptor.get("mediaType")
            if not isinstance(media_type, str) or len(media_type) > _MAX_NAME or _UNSTORABLE.search(media_type):
                media_type = ""
            found.append(
                Reference(
                    descriptor["digest"], media_type, size_of(descriptor.get("size")), bool(descriptor.get("urls"))
                )
            )
    return tuple(found)


def _timestamp(value: object) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _NotUnderstood("its timestamp is not a time as RFC 3339 writes it")
    usual = _USUAL_TIMESTAMP.match(value)
    if usual is not None:
        return f"{usual.group(1)} {usual.group(2)}"
    match = _TIMESTAMP.match(value)
    if match is None:
        raise _NotUnderstood("its timestamp is not a time as RFC 3339 writes it")
    year, month, day, hour, minute, second, fraction, utc, sign, offset_hours, offset_minutes = match.groups()
    try:
        # A leap second counts as the second before it: datetime knows none.
        moment = datetime(int(year), int(month), int(day), int(hour), int(minute), min(int(second), 59))
        if not utc:
            offset = timedelta(hours=int(offset_hours), minutes=int(offset_minutes))
            moment = moment - offset if sign == "+" else moment + offset
    except OverflowError:
        return None  # the zero time with an offset
    except ValueError:
        raise _NotUnderstood("its timestamp is no time of the calendar") from None
    if moment.year < 1000:
        return None  # Go's zero time, or as far from any time that a registry has seen
    # Digits beyond the microseconds that the tables hold are cut, never rounded: a time is not moved ahead.
    return f"{moment.isoformat(' ', 'seconds')}.{(fraction or '')[:6]:0<6}"


def utc_text(moment: datetime) -> str:
    """An aware time as `Event.timestamp` writes it."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f")


def _host_of(url: str) -> str:
    """The host and port of a URL, or nothing when it has none (target.url may be relative)."""
    scheme, separator, rest = url.partition("://")
    if not separator or not scheme:
        return ""
    host = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
    return host if len(host.encode("utf-8", "surrogatepass")) <= _MAX_NAME else ""


def _made_up_id(raw: dict[str, Any]) -> str:
    """An id for an event without one: the same for the same event, so that a repetition is known as one."""
    return "sha256:" + hashlib.sha256(json.dumps(raw, sort_keys=True, default=str).encode()).hexdigest()
