"""What ``WWW-Authenticate`` says is understood, and what it fails to say does no harm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regstat_lib.registry.challenge import Challenge, parse_challenges


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], []),
        ([""], []),
        ([" , ,"], []),
        (["Basic"], [("basic", {}, "")]),
        (['Basic realm="x"'], [("basic", {"realm": "x"}, "")]),
        (["BASIC Realm=x"], [("basic", {"realm": "x"}, "")]),
        (['Basic realm = "x" , charset="UTF-8"'], [("basic", {"realm": "x", "charset": "UTF-8"}, "")]),
        (
            ['Bearer realm="https://a/token",service="reg",scope="repository:a/b:pull,push"'],
            [("bearer", {"realm": "https://a/token", "service": "reg", "scope": "repository:a/b:pull,push"}, "")],
        ),
        (['Bearer realm="https://a/token"'], [("bearer", {"realm": "https://a/token"}, "")]),
        (['bearer service="s"'], [("bearer", {"service": "s"}, "")]),
        (
            ['Bearer realm="https://a",service=reg, Basic realm="b"'],
            [("bearer", {"realm": "https://a", "service": "reg"}, ""), ("basic", {"realm": "b"}, "")],
        ),
        (
            ['Negotiate, Basic realm="b"', 'Bearer realm="c"'],
            [("negotiate", {}, ""), ("basic", {"realm": "b"}, ""), ("bearer", {"realm": "c"}, "")],
        ),
        (
            ["Negotiate a87421000492aa874209af8bc028==, Basic"],
            [("negotiate", {}, "a87421000492aa874209af8bc028=="), ("basic", {}, "")],
        ),
        (
            [r'Newauth realm="apps", type=1, title="Login to \"apps\"", Basic realm="simple"'],  # RFC 9110, 11.6.1
            [
                ("newauth", {"realm": "apps", "type": "1", "title": 'Login to "apps"'}, ""),
                ("basic", {"realm": "simple"}, ""),
            ],
        ),
        ([r'Basic realm="a\\b\,c, d"'], [("basic", {"realm": "a\\b,c, d"}, "")]),
        (['Basic realm="first", realm="second"'], [("basic", {"realm": "first"}, "")]),
        (
            ['Bearer realm="https://a/token?x=1,2",error="invalid_token"'],
            [("bearer", {"realm": "https://a/token?x=1,2", "error": "invalid_token"}, "")],
        ),
        (['Bearer realm="no end'], [("bearer", {"realm": "no end"}, "")]),
        (["Bearer realm="], [("bearer", {}, "realm=")]),  # by the grammar this is a token68
        (['realm="without a scheme", Basic realm="b"'], [("basic", {"realm": "b"}, "")]),
        (['@@@, Basic realm="b"'], [("basic", {"realm": "b"}, "")]),
        (["Bearer  realm=https://a/token , service=s"], [("bearer", {"realm": "https://a/token", "service": "s"}, "")]),
        (
            ['Digest realm="d", nonce="n=="\t,\tBearer realm="b"'],
            [("digest", {"realm": "d", "nonce": "n=="}, ""), ("bearer", {"realm": "b"}, "")],
        ),
    ],
)
def test_challenges_are_understood(headers: list[str], expected: list[tuple[str, dict[str, str], str]]) -> None:
    assert list(parse_challenges(headers)) == [Challenge(*challenge) for challenge in expected]


pieces = st.sampled_from(
    ["Basic", "Bearer", " ", ",", "=", '"', "\\", "realm", "x", "==", "\t", "/", "é", "\x00", '"a,b"']
)


@given(st.lists(st.one_of(st.text(), st.lists(pieces).map("".join))))
def test_no_header_makes_the_parser_fail(headers: list[str]) -> None:
    for challenge in parse_challenges(headers):
        assert challenge.scheme == challenge.scheme.lower() != ""


tokens = st.text("abcXYZ09-_.", min_size=1)


@given(
    st.lists(st.tuples(tokens, st.dictionaries(tokens.map(str.lower), st.text(), min_size=1)), min_size=1),
    st.booleans(),
)
def test_what_is_written_is_read_back(offered: list[tuple[str, dict[str, str]]], one_header: bool) -> None:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    lines = [f"{scheme} " + ", ".join(f"{n}={quoted(v)}" for n, v in params.items()) for scheme, params in offered]
    headers = [", ".join(lines)] if one_header else lines
    assert list(parse_challenges(headers)) == [Challenge(scheme.lower(), params) for scheme, params in offered]


def test_a_long_header_takes_no_more_than_linear_time() -> None:
    for piece in ('a="', "a ", "a=b,", '"\\', ",", "a68= "):
        parse_challenges([piece * 20_000])
