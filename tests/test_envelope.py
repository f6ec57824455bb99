"""Whatever a request's body is, it is understood, set aside, or said to be no envelope; it never does harm."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regstat_lib.envelope import Envelope, Event, NotAnEnvelope, event_to_json, parse_envelope

DATA = Path(__file__).parent / "data"
DIGEST = "sha256:81b83ff7ec0eb6c5177ede688f3d16b4c87c1f2d0c5175806b1bad5aafb5f6e3"


def pull() -> dict[str, Any]:
    """A complete event that is understood."""
    return {
        "id": "dae6a384-07d7-43e1-9361-be93f37e2438",
        "timestamp": "2026-11-23T16:50:39.192923037Z",
        "action": "pull",
        "target": {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "size": 45,
            "length": 45,
            "digest": DIGEST,
            "repository": "team/app",
            "fromRepository": "team/base",
            "url": "https://registry.example/v2/team/app/manifests/" + DIGEST,
            "tag": "latest",
            "references": [{"mediaType": "text/plain", "size": 1, "digest": DIGEST, "urls": ["https://else.where"]}],
        },
        "request": {"id": "1", "addr": "10.0.0.1:50", "host": "registry.example", "method": "GET", "useragent": "x/1"},
        "actor": {"name": "ann"},
        "source": {"addr": "vm:5000", "instanceID": "2"},
    }


FIELDS = [
    (),
    *(("id",), ("timestamp",), ("action",), ("target",), ("request",), ("actor",), ("source",)),
    *(("target", name) for name in pull()["target"]),
    *(("target", "references", 0), ("target", "references", 0, "digest"), ("target", "references", 0, "mediaType")),
    *(("target", "references", 0, "size"), ("target", "references", 0, "urls")),
    *(("request", name) for name in pull()["request"]),
    ("actor", "name"),
    *(("source", "addr"), ("source", "instanceID")),
]


def having(path: tuple[str | int, ...], value: Any) -> Any:
    """The complete event with another value in one place."""
    if not path:
        return value
    event = pull()
    inside: Any = event
    for step in path[:-1]:
        inside = inside[step]
    inside[path[-1]] = value
    return event


def parsed(*events: Any) -> Envelope:
    return parse_envelope(json.dumps({"events": events}).encode())


def texts(event: Event) -> list[str]:
    found = [value for value in event if isinstance(value, str)]
    for reference in event.references or ():
        found += [reference.digest, reference.media_type]
    return found


def holds(envelope: Envelope, sent: int) -> None:
    """What an envelope promises: all accounted for, and nothing in it that a database cannot hold."""
    assert len(envelope.events) + len(envelope.set_aside) == sent
    for event in envelope.events:
        assert not re.search("[\0\ud800-\udfff]", "".join(texts(event)))
        assert event.id
        assert event.host
        assert event.repository
        assert event.digest or event.action == "delete"
        for size in (event.size, *(reference.size for reference in event.references or ())):
            assert size is None or 0 <= size < 2**63
        key = f"{event.host}/{event.repository}:{event.tag}".encode()
        assert len(key) < 2700  # what Postgres can index
        json.loads(event_to_json(event))
    for reason, event_json in envelope.set_aside:
        assert reason.isprintable()
        event_json.encode("ascii")
        json.loads(event_json)


any_text = st.one_of(
    st.text(),
    st.text(st.characters(categories=["Cs", "Cc", "Lu"])),
    st.sampled_from(["", "\0", "\ud800", "\udfff x", "\N{PILE OF POO}" * 300, "t" * 10_000, "é" * 300, DIGEST, "x:y"]),
)
any_json = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([2**63 - 1, 2**63, -1, 10**400, -(10**30)]),
        st.floats(),
        any_text,
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(any_text, inner, max_size=3)),
    max_leaves=5,
)


def parsed_or_refused(body: bytes) -> Envelope | str:
    """The envelope, or the sentence that says why the body is none."""
    try:
        return parse_envelope(body)
    except NotAnEnvelope as error:
        return str(error)


@given(st.binary())
def test_any_bytes_are_an_envelope_or_said_to_be_none(body: bytes) -> None:
    found = parsed_or_refused(body)
    if isinstance(found, str):
        assert "expected" in found
    else:
        holds(found, len(json.loads(body)["events"]))


@given(any_json)
def test_json_that_is_no_envelope_is_refused_with_what_was_expected(document: Any) -> None:
    if isinstance(document, dict) and isinstance(document.get("events"), list):
        return
    with pytest.raises(NotAnEnvelope, match=re.escape('{"events": [...]}')):
        parse_envelope(json.dumps(document).encode())


@given(st.sampled_from(FIELDS), any_json, st.booleans())
def test_any_value_in_any_field_is_understood_or_set_aside(
    path: tuple[str | int, ...], value: Any, escaped: bool
) -> None:
    document = {"events": [having(path, value), pull()]}
    envelope = parse_envelope(json.dumps(document, ensure_ascii=escaped).encode("utf-8", "surrogatepass"))
    holds(envelope, 2)
    assert parsed(pull()).events[0] in envelope.events


@given(st.lists(any_json, max_size=5))
def test_events_of_any_shape_are_all_accounted_for(events: list[Any]) -> None:
    holds(parsed(*events), len(events))


@pytest.mark.parametrize("path", [path for path in FIELDS if path], ids=str)
@pytest.mark.parametrize("escaped", [True, False], ids=["escaped", "raw"])
@pytest.mark.parametrize("code", [0, 0xD800, 0xDC00], ids=["NUL", "high", "low"])
def test_what_a_database_cannot_hold_is_in_no_event(path: tuple[str | int, ...], escaped: bool, code: int) -> None:
    document = {"events": [having(path, f"x{chr(code)}y"), pull()]}
    holds(parse_envelope(json.dumps(document, ensure_ascii=escaped).encode("utf-8", "surrogatepass")), 2)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32-le"])
def test_no_other_encoding_brings_what_a_database_cannot_hold(encoding: str) -> None:
    """Senders owe UTF-8 (RFC 8259, section 8.1); Python's parser takes the others as well."""
    for code in (0, 0xD800, 0xDC00):
        for escaped in (True, False):
            document = {"events": [having(("actor", "name"), f"x{chr(code)}y"), pull()]}
            found = parsed_or_refused(json.dumps(document, ensure_ascii=escaped).encode(encoding, "surrogatepass"))
            if not isinstance(found, str):
                holds(found, 2)


def test_a_pair_of_surrogates_is_one_character_and_is_understood() -> None:
    envelope = parsed(having(("actor", "name"), "\N{PILE OF POO}"))
    assert [event.actor for event in envelope.events] == ["\N{PILE OF POO}"]


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ((), None, "not an object"),
        ((), [], "not an object"),
        (("action",), "scan", "action"),
        (("action",), None, "action"),
        (("action",), ["pull"], "action"),
        (("target",), None, "no target"),
        (("target", "repository"), "", "repository"),
        (("target", "repository"), 7, "repository is not a text"),
        (("target", "repository"), "r" * 10_000, "repository is longer than 600 bytes"),
        (("target", "digest"), "", "without a digest"),
        (("target", "digest"), None, "without a digest"),
        (("target", "digest"), "latest", "digest"),
        (("target", "digest"), DIGEST + "\n", "digest"),
        (("target", "digest"), "sha256:" + "0" * 10_000, "digest is longer than 512 bytes"),
        (("target", "tag"), "t" * 10_000, "tag is longer than 512 bytes"),
        (("target", "tag"), "é" * 257, "tag is longer than 512 bytes"),
        (("target", "tag"), {}, "tag is not a text"),
        (("id",), 1, "id is not a text"),
        (("timestamp",), "yesterday", "RFC 3339"),
        (("timestamp",), 1767225600, "RFC 3339"),
        (("timestamp",), "2026-02-30T00:00:00Z", "calendar"),
        (("timestamp",), "2026-02-01T24:00:00Z", "calendar"),
        (("actor", "name"), "a\0b", "cannot hold"),
    ],
)
def test_what_is_not_understood_is_set_aside_with_its_reason(
    path: tuple[str | int, ...], value: Any, reason: str
) -> None:
    envelope = parsed(pull(), having(path, value), pull())
    assert len(envelope.events) == 2
    assert [reason in aside.reason for aside in envelope.set_aside] == [True]
    assert json.loads(envelope.set_aside[0].event) == having(path, value)


@pytest.mark.parametrize(
    ("path", "value", "field", "expected"),
    [
        (("target", "size"), 2**63, "size", None),
        (("target", "size"), -1, "size", None),
        (("target", "size"), True, "size", None),
        (("target", "size"), 4.0, "size", None),
        (("request", "useragent"), ["x"], "user_agent", ""),
        (("request", "useragent"), "x" * 10_000, "user_agent", "x" * 4096),
        (("actor",), "ann", "actor", ""),
        (("source",), None, "source", ""),
        (("request",), None, "host", "registry.example"),
        (("target", "references"), None, "references", None),
        (("target", "references"), [], "references", ()),
        (("target", "references"), [None, {}, {"digest": "x"}], "references", ()),
        (("target", "mediaType"), None, "media_type", ""),
    ],
    ids=str,
)
def test_what_is_only_noted_never_costs_the_event(
    path: tuple[str | int, ...], value: Any, field: str, expected: Any
) -> None:
    envelope = parsed(having(path, value))
    assert [getattr(event, field) for event in envelope.events] == [expected]


@pytest.mark.parametrize("depth", [100, 900, 990, 2_000, 100_000])
@pytest.mark.parametrize("with_id", [True, False])
def test_deep_nesting_is_no_crash(depth: int, with_id: bool) -> None:
    deep = "[" * depth + "]" * depth
    event = pull()
    if not with_id:
        del event["id"]
    body = json.dumps({"events": [{**event, "extra": "PLACE"}, pull(), "PLACE"]}).replace('"PLACE"', deep)
    found = parsed_or_refused(body.encode())
    if isinstance(found, str):
        assert "nested too deeply" in found
    else:
        holds(found, 3)


def test_a_number_of_thousands_of_digits_does_not_cost_the_envelope() -> None:
    document = {"events": [{**having(("target", "size"), "PLACE"), "extra": "PLACE"}, pull(), "PLACE"]}
    envelope = parse_envelope(json.dumps(document).replace('"PLACE"', "9" * 100_000).encode())
    holds(envelope, 3)
    assert [event.size for event in envelope.events] == [None, 45]


@pytest.mark.parametrize("missing", FIELDS[1:], ids=str)
def test_an_event_without_a_field_is_understood_or_set_aside(missing: tuple[str | int, ...]) -> None:
    event = pull()
    inside: Any = event
    for step in missing[:-1]:
        inside = inside[step]
    del inside[missing[-1]]
    envelope = parsed(event, pull())
    holds(envelope, 2)
    needed = {("action",), ("target",), ("target", "repository"), ("target", "digest")}
    assert bool(envelope.set_aside) == (missing in needed)


def test_an_event_without_an_id_has_the_same_made_up_id_each_time() -> None:
    one, again, other = pull(), pull(), pull()
    del one["id"], again["id"], other["id"]
    other["target"]["tag"] = "v2"
    ids = [event.id for event in parsed(one, dict(reversed(again.items())), other).events]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2026-11-23T16:50:39.192923037Z", "2026-11-23 16:50:39.192923"),
        ("2026-11-23T16:50:39.999999999Z", "2026-11-23 16:50:39.999999"),
        ("2026-11-23T16:50:39Z", "2026-11-23 16:50:39.000000"),
        ("2026-11-23T16:50:39.5Z", "2026-11-23 16:50:39.500000"),
        ("2026-11-23t16:50:39.5z", "2026-11-23 16:50:39.500000"),
        ("2026-11-23 16:50:39Z", "2026-11-23 16:50:39.000000"),
        ("2026-11-23T16:50:39+02:00", "2026-11-23 14:50:39.000000"),
        ("2026-11-23T16:50:39-00:00", "2026-11-23 16:50:39.000000"),
        ("2026-01-01T00:30:00.25+05:45", "2025-12-31 18:45:00.250000"),
        ("2024-02-28T23:30:00-01:00", "2024-02-29 00:30:00.000000"),
        ("2016-12-31T23:59:60Z", "2016-12-31 23:59:59.000000"),
        ("2017-01-01T00:59:60.7+01:00", "2016-12-31 23:59:59.700000"),
        ("0001-01-01T00:00:00Z", None),
        ("0001-01-01T00:00:00+02:00", None),
        ("0001-01-01T00:00:00-02:00", None),
        ("0001-01-01T00:00:00.000000001Z", None),
        ("", None),
        (None, None),
    ],
)
def test_a_time_is_read_as_utc(written: str | None, expected: str | None) -> None:
    envelope = parsed(having(("timestamp",), written))
    assert [event.timestamp for event in envelope.events] == [expected]


@pytest.mark.parametrize(
    "written",
    [
        "2026-11-23T16:50:39",
        "2026-11-23",
        "2026-11-23T16:50Z",
        "2026-11-23T16:50:39.Z",
        "2026-11-23T16:50:39Z\n",
        "2026-11-23T16:60:00Z",
        "2026-13-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "٢٠٢٦-11-23T16:50:39Z",
    ],
)
def test_what_is_no_time_sets_the_event_aside(written: str) -> None:
    envelope = parsed(having(("timestamp",), written))
    assert [("timestamp" in aside.reason) for aside in envelope.set_aside] == [True]


@given(
    st.datetimes(min_value=datetime(1000, 1, 3), max_value=datetime(9999, 12, 30)),
    st.integers(-23 * 60 - 59, 23 * 60 + 59),
    st.text("0123456789", max_size=3),
)
def test_every_way_to_write_a_moment_is_that_moment(moment: datetime, offset: int, finer: str) -> None:
    there = moment.replace(tzinfo=timezone.utc).astimezone(timezone(timedelta(minutes=offset)))
    written = there.isoformat(timespec="microseconds")
    written = f"{written[:26]}{finer}{written[26:]}"
    envelope = parsed(having(("timestamp",), written))
    assert [event.timestamp for event in envelope.events] == [moment.isoformat(" ", "microseconds")]


@pytest.mark.parametrize("recording", sorted(DATA.glob("*.jsonl")), ids=lambda path: path.name)
def test_what_a_real_registry_sent_is_all_understood(recording: Path) -> None:
    understood = 0
    for line in recording.read_text().splitlines():
        body = json.loads(line)["body"].encode()
        envelope = parse_envelope(body)
        holds(envelope, len(json.loads(body)["events"]))
        assert not envelope.set_aside
        for event in envelope.events:
            assert event.timestamp is not None
            assert event.host
        understood += len(envelope.events)
    assert understood
