"""Where a registry is asked, and what may be shown a secret."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regstat_lib.registry import ManifestSource
from regstat_lib.registry.address import Reach, is_host, is_loopback, is_repository, split_http_url


def source(registry: str, url: str = "", host: str = "") -> ManifestSource:
    return ManifestSource(registry, "team/app", "sha256:0", url, host)


def bases(reach: Reach, asked: ManifestSource) -> list[str]:
    return [address.base for address in reach.addresses(asked)]


NOTHING_SAID = Reach({}, ())


@pytest.mark.parametrize(
    ("reach", "asked", "expected"),
    [
        (NOTHING_SAID, source("hub"), ["https://hub"]),
        (NOTHING_SAID, source("hub", "https://hub/v2/x"), ["https://hub"]),
        (NOTHING_SAID, source("hub", "http://hub/v2/x"), ["http://hub", "https://hub"]),
        (NOTHING_SAID, source("hub", "/v2/x"), ["https://hub"]),
        (NOTHING_SAID, source("hub", "ftp://hub/v2/x"), ["https://hub"]),
        (NOTHING_SAID, source("localhost:5000"), ["https://localhost:5000", "http://localhost:5000"]),
        (
            NOTHING_SAID,
            source("127.0.0.1:5000", "http://127.0.0.1:5000/"),
            ["http://127.0.0.1:5000", "https://127.0.0.1:5000"],
        ),
        (Reach({}, ["hub"]), source("hub"), ["https://hub", "http://hub"]),
        (Reach({}, ["hub"]), source("hub:5000"), ["https://hub:5000", "http://hub:5000"]),
        (Reach({}, ["hub:5000"]), source("hub:5001"), ["https://hub:5001"]),
        (NOTHING_SAID, source("hub", "https://alias:5000/v2/", "alias:5000"), ["https://hub", "https://alias:5000"]),
        (
            Reach({"hub": "https://10.0.0.1:444/prefix/"}, ()),
            source("hub", "http://hub/"),
            ["https://10.0.0.1:444/prefix"],
        ),
        (Reach({"alias:5000": "https://10.0.0.1"}, ()), source("hub", "", "alias:5000"), ["https://10.0.0.1"]),
        (Reach({"HUB": "http://registry:5000"}, ()), source("hub"), ["http://registry:5000"]),
        (NOTHING_SAID, source("docker.io"), ["https://registry-1.docker.io"]),
        (NOTHING_SAID, source("", "", ""), []),
        (NOTHING_SAID, source("../etc", "https://u:p@hub/", "a b"), []),
        (NOTHING_SAID, source("bad host", "http://good:5000/x"), ["http://good:5000", "https://good:5000"]),
    ],
)
def test_addresses_are_tried_in_this_order(reach: Reach, asked: ManifestSource, expected: list[str]) -> None:
    assert bases(reach, asked) == expected


def test_an_address_has_the_credentials_of_the_registry_it_was_given_for() -> None:
    (address,) = Reach({"hub": "https://10.0.0.1:444"}, ()).addresses(source("hub"))
    assert address.names == ("hub", "10.0.0.1:444")


@pytest.mark.parametrize(
    ("url", "may"),
    [
        ("https://anywhere.example/", True),
        ("http://anywhere.example/", False),
        ("http://localhost:5000/", True),
        ("http://127.8.9.1/", True),
        ("http://[::1]:5000/", True),
        ("http://localhost.evil.example/", False),
        ("http://127.0.0.1.evil.example/", False),
        ("http://plain:5000/", True),
        ("http://plain:5001/", False),
        ("http://anyport:1/", True),
        ("http://10.0.0.9:5000/", True),
        ("http://10.0.0.9:5001/", False),
    ],
)
def test_a_secret_goes_over_plain_http_only_where_it_is_allowed(url: str, may: bool) -> None:
    reach = Reach({"plain:5000": "http://10.0.0.9:5000", "other": "http://10.0.0.9:5001"}, ["plain:5000", "anyport"])
    assert reach.may_see_credentials(url) is may


@pytest.mark.parametrize(
    ("addresses", "insecure"),
    [
        ({"hub": "hub:5000"}, ()),
        ({"hub": "ftp://hub"}, ()),
        ({"hub": "https://u:p@hub"}, ()),
        ({"hub": "https://hub/?x"}, ()),
        ({"h ub": "https://hub"}, ()),
        ({}, ["http://hub"]),
    ],
)
def test_what_the_operator_said_wrongly_is_refused_at_start(
    addresses: dict[str, str], insecure: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match="expected"):
        Reach(addresses, insecure)


@pytest.mark.parametrize("name", ["a", "team/app", "a/b/c/d", "a__b", "a.b-c/d_e", "UPPER/Case", "...a", "a/..b"])
def test_a_repositorys_name(name: str) -> None:
    assert is_repository(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/a",
        "a/",
        "a//b",
        "..",
        "../a",
        "a/..",
        "a/../b",
        ".",
        "a/.",
        "a?b",
        "a#b",
        "a%2e",
        "a b",
        "a\n",
        "é",
        "a\\b",
        "x" * 1025,
    ],
)
def test_what_could_leave_a_repositorys_place_is_no_name(name: str) -> None:
    assert not is_repository(name)


@pytest.mark.parametrize(
    "host", ["", ".", "..", "-a", "a..", "a/b", "a@b", "a:b", "a:1:2", "a:123456", "[::1", "a b", "a\n", "é"]
)
def test_what_is_no_host(host: str) -> None:
    assert not is_host(host)


@given(st.text())
def test_any_text_is_taken_or_refused(text: str) -> None:
    is_host(text)
    is_repository(text)
    is_loopback(text) if is_host(text) else None
    split_http_url(text)
    NOTHING_SAID.addresses(source(text, text, text))
    NOTHING_SAID.addresses(source("hub", f"http://{text}/"))
