"""A Docker configuration in every form that people have."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regstat_lib.registry.credentials import IdentityToken, UserPassword
from regstat_lib.registry.docker_config import ConfigError, Helper, parse_docker_config

ALICE = UserPassword("alice", "pass:word")
ALICE_AUTH = base64.b64encode(b"alice:pass:word").decode()


def auths(**entries: object) -> str:
    return json.dumps({"auths": entries})


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("hub.example", "hub.example"),
        ("HUB.example", "hub.example"),
        ("hub.example:5000", "hub.example:5000"),
        ("https://hub.example", "hub.example"),
        ("https://hub.example/v1/", "hub.example"),
        ("http://hub.example:5000/v2/", "hub.example:5000"),
        ("hub.example/v1/", "hub.example"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("https://index.docker.io/v1/", "registry-1.docker.io"),
        ("docker.io", "index.docker.io"),
        ("[::1]:5000", "[::1]:5000"),
    ],
)
def test_a_key_is_found_for_its_host(key: str, host: str) -> None:
    config = parse_docker_config(json.dumps({"auths": {key: {"auth": ALICE_AUTH}}}))
    assert config.credentials([host]) == (key, ALICE)


@pytest.mark.parametrize("host", ["hub.example:5000", "example", "a.hub.example", "hub.example.org", "docker.io"])
def test_a_key_is_not_found_for_another_host(host: str) -> None:
    config = parse_docker_config(json.dumps({"auths": {"https://hub.example/v1/": {"auth": ALICE_AUTH}}}))
    assert config.credentials([host]) is None


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"auth": ALICE_AUTH}, ALICE),
        ({"auth": ALICE_AUTH[:4] + "\n" + ALICE_AUTH[4:]}, ALICE),
        ({"auth": base64.b64encode(b"alice:pass:word\0\0").decode()}, ALICE),
        ({"username": "alice", "password": "pass:word"}, ALICE),
        ({"auth": "", "username": "alice", "password": "pass:word", "email": "a@example"}, ALICE),
        ({"auth": base64.b64encode("älice:pässword".encode()).decode()}, UserPassword("älice", "pässword")),
        ({"identitytoken": "t0ken"}, IdentityToken("t0ken")),
        (
            {"auth": base64.b64encode(b"00000000-0000-0000-0000-000000000000:").decode(), "identitytoken": "t0ken"},
            IdentityToken("t0ken"),
        ),
        ({}, None),
    ],
)
def test_credentials_are_read_in_every_form(entry: object, expected: object) -> None:
    found = parse_docker_config(auths(hub=entry)).credentials(["hub"])
    assert (found[1] if found else None) == expected


def test_the_exact_key_wins_over_one_that_means_the_same_host() -> None:
    text = json.dumps(
        {"auths": {"https://hub/v1/": {"username": "a", "password": "1"}, "hub": {"username": "b", "password": "2"}}}
    )
    assert parse_docker_config(text).credentials(["hub"]) == ("hub", UserPassword("b", "2"))


def test_an_alias_is_looked_up_after_the_registry_itself() -> None:
    text = json.dumps({"auths": {"alias": {"username": "a", "password": "1"}}})
    assert parse_docker_config(text).credentials(["hub", "alias"]) == ("alias", UserPassword("a", "1"))


def test_the_helper_of_a_registry_wins_over_the_store_of_all() -> None:
    config = parse_docker_config(json.dumps({"credHelpers": {"https://hub": "ecr-login"}, "credsStore": "pass"}))
    assert config.helper(["hub"]) == Helper("ecr-login", "https://hub")
    assert config.helper(["other"]) == Helper("pass", "other")


def test_a_store_is_asked_with_the_key_that_docker_login_used() -> None:
    config = parse_docker_config(json.dumps({"auths": {"https://hub/v1/": {}}, "credsStore": "pass"}))
    assert config.helper(["hub"]) == Helper("pass", "https://hub/v1/")
    assert config.helper(["docker.io"]) == Helper("pass", "https://index.docker.io/v1/")


def test_without_helpers_none_is_asked() -> None:
    assert parse_docker_config('{"HttpHeaders": {"User-Agent": "x"}}').helper(["hub"]) is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "line 1 column 1: Expecting value"),
        ('{"auths": {\n  "a": {,}}}', "line 2 column 9: "),
        ("[]", "expected an object, found an array"),
        ("null", "expected an object, found null"),
        ('{"auths": []}', "auths: expected an object, found an array"),
        ('{"auths": {"hub": "secret"}}', 'auths["hub"]: expected an object, found a string'),
        ('{"auths": {"hub": {"auth": 7}}}', 'auths["hub"].auth: expected a string, found a number'),
        ('{"auths": {"hub": {"auth": "s3cret!"}}}', 'auths["hub"].auth: expected user:password in base64'),
        (
            '{"auths": {"hub": {"auth": "c2VjcmV0"}}}',
            'auths["hub"].auth: expected user:password in base64, found no colon',
        ),
        ('{"auths": {"hub": {"auth": "/////w=="}}}', 'auths["hub"].auth: expected user:password in base64'),
        ('{"auths": {"hub": {"identitytoken": {}}}}', 'auths["hub"].identitytoken: expected a string, found an object'),
        ('{"credHelpers": {"hub": 1}}', 'credHelpers["hub"]: expected the NAME of a program docker-credential-NAME'),
        ('{"credHelpers": {"hub": "../../bin/sh"}}', 'credHelpers["hub"]: expected the NAME of a program'),
        ('{"credsStore": true}', "credsStore: expected the NAME of a program"),
        ("[" * 100_000, "nested too deeply"),
        ('{"auths": {"a\\nb": 1}}', 'auths["a\\nb"]: expected an object'),
    ],
)
def test_what_is_wrong_is_said_with_its_place_and_in_one_line(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_docker_config(text)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
    assert "s3cret" not in str(error.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["hub", "auth", "username", "identitytoken"]) | st.text(), inner)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["auths", "credHelpers", "credsStore"]), json_values))
def test_any_json_is_read_or_refused_in_one_line(document: dict[str, object]) -> None:
    complaint = ""
    try:
        config = parse_docker_config(json.dumps(document))
        config.helper(["hub"])
        config.credentials(["hub"])
    except ConfigError as error:
        complaint = str(error)
    assert len(complaint.splitlines()) <= 1
