"""The conversation with registry and token server, without a socket."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regstat_lib.registry.auth_flow import (
    MAX_REDIRECTS,
    Obtain,
    Send,
    Token,
    TokenRequest,
    Visitor,
    converse,
    token_exchange,
)
from regstat_lib.registry.credentials import Credentials, IdentityToken, UserPassword
from regstat_lib.registry.http_message import Request, Response
from regstat_lib.registry.trouble import FetchError, Trouble

HUB = "https://hub.example"
MANIFEST = Request(f"{HUB}/v2/team/app/manifests/sha256:0", 4096)
ALICE = UserPassword("alice", "s3cr3t-Pass")
BEARER = 'Bearer realm="https://auth.example/token",service="hub",scope="repository:team/app:pull"'
WANTED = TokenRequest("https://auth.example/token", "hub", "repository:team/app:pull")


def visitor(credentials: Credentials | None = ALICE) -> Visitor:
    return Visitor(
        "hub.example", "team/app", credentials, '"hub.example" in config.json', lambda url: url.startswith("https:")
    )


def response(status: int, url: str = MANIFEST.url, body: bytes = b"", **headers: str) -> Response:
    return Response(url, status, tuple((name.replace("_", "-"), value) for name, value in headers.items()), body)


def challenged(challenge: str = BEARER) -> Response:
    return response(401, www_authenticate=challenge)


def redirect(location: str, status: int = 307) -> Response:
    return response(status, location=location)


def play(flow: Generator[Any, Any, Any], *replies: Response | str) -> tuple[list[Any], Any]:
    """What the flow wanted, and what it returned when it had all the replies."""
    wanted = [next(flow)]
    for reply in replies[:-1]:
        wanted.append(flow.send(reply))
    try:
        wanted.append(flow.send(replies[-1]))
    except StopIteration as end:
        return wanted, end.value
    return wanted, None


def test_a_registry_that_does_not_challenge_is_shown_nothing() -> None:
    wanted, result = play(converse(MANIFEST, visitor(), None), response(200))
    assert wanted == [Send(MANIFEST)]
    assert result.status == 200
    assert wanted[0].request.authorization is None


def test_a_bearer_challenge_is_answered_with_a_token() -> None:
    wanted, result = play(converse(MANIFEST, visitor(), None), challenged(), "Bearer t", response(200))
    assert wanted[1] == Obtain(WANTED, None)
    assert wanted[2].request.authorization == "Bearer t"
    assert result.status == 200


def test_a_basic_challenge_is_answered_with_user_and_password() -> None:
    wanted, _ = play(converse(MANIFEST, visitor(), None), challenged('Basic realm="x"'))
    assert wanted[1] == Obtain(ALICE, None)


def test_bearer_is_preferred_to_basic() -> None:
    wanted, _ = play(converse(MANIFEST, visitor(), None), challenged(f'Basic realm="x", {BEARER}'))
    assert wanted[1] == Obtain(WANTED, None)


def test_what_served_before_is_shown_at_once() -> None:
    wanted, _ = play(converse(MANIFEST, visitor(), "Bearer old"), response(200))
    assert wanted[0].request.authorization == "Bearer old"


def test_a_401_with_a_held_token_asks_for_a_new_one_exactly_once() -> None:
    replies = (challenged(), "Bearer new", challenged())
    wanted, result = play(converse(MANIFEST, visitor(), "Bearer old"), *replies)
    assert [type(want) for want in wanted] == [Send, Obtain, Send]
    assert wanted[1].rejected == "Bearer old"
    assert result.status == 401


def test_what_was_refused_is_not_sent_again() -> None:
    held = ALICE.basic()
    wanted, result = play(converse(MANIFEST, visitor(), held), challenged("Basic"), held)
    assert [type(want) for want in wanted] == [Send, Obtain]
    assert result.status == 401


def test_a_challenge_without_a_scope_means_pulling_this_repository() -> None:
    wanted, _ = play(converse(MANIFEST, visitor(), None), challenged('Bearer realm="https://auth.example/token"'))
    assert wanted[1].want == TokenRequest("https://auth.example/token", "", "repository:team/app:pull")


@pytest.mark.parametrize(
    ("challenge", "credentials", "trouble"),
    [
        ("Basic", None, Trouble.REFUSED),
        ("Basic", IdentityToken("s3cr3t-Pass"), Trouble.REFUSED),
        ("Negotiate", ALICE, Trouble.REFUSED),
        ("", ALICE, Trouble.REFUSED),
        ('Bearer service="no realm"', ALICE, Trouble.REFUSED),
        ('Bearer realm="http://auth.example/token"', ALICE, Trouble.REFUSED),
        ('Bearer realm="http://auth.example/token"', IdentityToken("s3cr3t-Pass"), Trouble.REFUSED),
        ('Bearer realm="file:///etc/passwd"', None, Trouble.UNUSABLE),
        ('Bearer realm="ftp://auth.example/token"', None, Trouble.UNUSABLE),
        ('Bearer realm="/token"', ALICE, Trouble.UNUSABLE),
        ('Bearer realm="https://user:s3cr3t-Pass@auth.example/token"', ALICE, Trouble.UNUSABLE),
        ('Bearer realm="https:///token"', ALICE, Trouble.UNUSABLE),
        ('Bearer realm="https://auth.example:99999/"', ALICE, Trouble.UNUSABLE),
        ('Bearer realm="https://[::1/"', ALICE, Trouble.UNUSABLE),
        ('Bearer realm="https://auth.example\\\\@evil.example/"', ALICE, Trouble.UNUSABLE),
        ('Bearer realm="https://auth.example/a\\\r\\\nb"', ALICE, Trouble.UNUSABLE),
    ],
)
def test_a_challenge_that_must_not_be_answered_ends_it(
    challenge: str, credentials: Credentials | None, trouble: Trouble
) -> None:
    with pytest.raises(FetchError) as error:
        play(converse(MANIFEST, visitor(credentials), None), challenged(challenge))
    assert error.value.trouble is trouble
    assert "hub.example" in str(error.value)
    assert ALICE.password not in str(error.value)


def test_the_flag_that_would_help_is_named() -> None:
    with pytest.raises(FetchError, match=r"-insecure-registry auth\.example:81 would allow it"):
        play(converse(MANIFEST, visitor(), None), challenged('Bearer realm="http://auth.example:81/token"'))


def test_a_realm_on_plain_http_is_asked_for_an_anonymous_token() -> None:
    wanted, _ = play(converse(MANIFEST, visitor(None), None), challenged('Bearer realm="http://auth.example/token"'))
    assert isinstance(wanted[1], Obtain)


@pytest.mark.parametrize(
    ("location", "follows"),
    [
        (f"{HUB}/elsewhere", True),
        ("/elsewhere", True),
        ("https://HUB.example:443/elsewhere", True),
        ("https://hub.example:444/elsewhere", False),
        ("http://hub.example/elsewhere", False),
        ("https://evil.example/elsewhere", False),
        ("//evil.example/elsewhere", False),
        ("https://hub.example.evil.example/elsewhere", False),
    ],
)
def test_an_authorization_follows_a_redirect_only_to_the_same_scheme_host_and_port(
    location: str, follows: bool
) -> None:
    wanted, _ = play(converse(MANIFEST, visitor(), "Bearer t"), redirect(location))
    assert wanted[1].request.url.endswith("/elsewhere")
    assert wanted[1].request.authorization == ("Bearer t" if follows else None)


def test_an_authorization_that_was_dropped_does_not_come_back() -> None:
    replies = (redirect("https://evil.example/"), redirect(f"{HUB}/back"))
    wanted, _ = play(converse(MANIFEST, visitor(), "Bearer t"), *replies)
    assert wanted[2].request.authorization is None


def test_the_challenge_of_another_host_is_not_answered() -> None:
    elsewhere = response(401, url="https://evil.example/", www_authenticate='Bearer realm="https://evil.example/"')
    wanted, result = play(converse(MANIFEST, visitor(), None), redirect("https://evil.example/"), elsewhere)
    assert [type(want) for want in wanted] == [Send, Send]
    assert result.status == 401


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://hub.example/",
        "",
        "https://u:p@hub.example/",
        "http://[",
        "gopher:x",
        "https://a b/",
    ],
)
def test_a_redirect_to_what_is_no_http_host_is_refused(location: str) -> None:
    with pytest.raises(FetchError) as error:
        play(converse(MANIFEST, visitor(), None), redirect(location))
    assert error.value.trouble is Trouble.UNUSABLE


def test_redirects_end() -> None:
    with pytest.raises(FetchError, match="redirects more than") as error:
        play(converse(MANIFEST, visitor(), None), *[redirect("/again")] * (MAX_REDIRECTS + 1))
    assert error.value.trouble is Trouble.UNUSABLE


def ask_token(credentials: Credentials | None, want: TokenRequest = WANTED) -> Request:
    request: Request = next(token_exchange(want, visitor(credentials))).request
    return request


def test_a_token_is_asked_with_service_and_scope() -> None:
    request = ask_token(ALICE)
    assert parse_qs(urlsplit(request.url).query) == {"service": ["hub"], "scope": ["repository:team/app:pull"]}
    assert request.authorization == ALICE.basic()
    assert request.form is None


def test_without_credentials_the_token_is_anonymous() -> None:
    assert ask_token(None).authorization is None


def test_several_scopes_are_asked_for_one_by_one_and_what_the_realm_had_is_kept() -> None:
    request = ask_token(
        None, TokenRequest("https://auth.example/token?account=x", "", "repository:a:pull repository:b:pull")
    )
    assert parse_qs(urlsplit(request.url).query) == {
        "account": ["x"],
        "scope": ["repository:a:pull", "repository:b:pull"],
    }


def test_an_identity_token_is_posted_and_stands_in_no_url_or_header() -> None:
    request = ask_token(IdentityToken("refresh&me"))
    assert request.url == WANTED.realm
    assert request.authorization is None
    assert request.form is not None
    assert parse_qs(request.form.decode()) == {
        "grant_type": ["refresh_token"],
        "refresh_token": ["refresh&me"],
        "service": ["hub"],
        "scope": ["repository:team/app:pull"],
        "client_id": ["regstat"],
    }


def test_a_post_with_an_identity_token_is_not_redirected() -> None:
    for status in (301, 302, 303, 307, 308):
        with pytest.raises(FetchError) as error:
            play(token_exchange(WANTED, visitor(IdentityToken("t"))), redirect("/other", status))
        assert error.value.trouble is Trouble.UNUSABLE


def token(**answer: object) -> Token:
    flow = token_exchange(WANTED, visitor())
    _, result = play(flow, response(200, body=json.dumps(answer).encode()))
    assert isinstance(result, Token)
    return result


def test_token_and_access_token_mean_the_same() -> None:
    assert token(token="a").authorization == "Bearer a"
    assert token(access_token="a").authorization == "Bearer a"
    assert token(token="", access_token="a").authorization == "Bearer a"


@pytest.mark.parametrize(
    ("expires_in", "life"),
    [
        (300, 290),
        ("300", 290),
        (60, 50),
        (10, 5),
        (0.5, 0.25),
        (None, 50),
        (0, 50),
        (-5, 50),
        (True, 50),
        ("soon", 50),
        ([], 50),
        (float("nan"), 50),
        (float("inf"), 24 * 3600 - 10),
        (10**400, 24 * 3600 - 10),
    ],
)
def test_a_token_is_used_for_less_than_it_is_valid(expires_in: object, life: float) -> None:
    assert token(token="a", expires_in=expires_in).life == life


def test_without_expires_in_a_token_is_valid_for_a_minute() -> None:
    assert token(token="a").life == 50


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b"{}",
        b'{"token": 1}',
        b'{"token": ""}',
        b'{"token": "a\\r\\nX-Evil: 1"}',
        b'{"token": "\xc3\xa9"}',
        b"\xff",
        b"[" * 60_000,
    ],
)
def test_an_answer_without_a_token_is_unusable(body: bytes) -> None:
    with pytest.raises(FetchError) as error:
        play(token_exchange(WANTED, visitor()), response(200, body=body))
    assert error.value.trouble is Trouble.UNUSABLE


@pytest.mark.parametrize(
    ("status", "trouble"),
    [
        (400, Trouble.REFUSED),
        (401, Trouble.REFUSED),
        (403, Trouble.REFUSED),
        (404, Trouble.UNUSABLE),
        (429, Trouble.BUSY),
        (500, Trouble.UNREACHABLE),
        (502, Trouble.UNREACHABLE),
        (503, Trouble.BUSY),
    ],
)
def test_the_token_servers_status_says_whether_trying_again_helps(status: int, trouble: Trouble) -> None:
    with pytest.raises(FetchError, match=r"auth\.example") as error:
        play(token_exchange(WANTED, visitor()), response(status, body=ALICE.password.encode()))
    assert error.value.trouble is trouble
    assert ALICE.password not in str(error.value)


secrets = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/=", min_size=1).map("Zq9".__add__)


@given(secrets, secrets)
def test_no_repr_shows_a_secret(user: str, secret: str) -> None:
    credentials = UserPassword(user, secret)
    for value in (
        credentials,
        IdentityToken(secret),
        visitor(credentials),
        ask_token(credentials),
        ask_token(IdentityToken(secret)),
        Send(ask_token(credentials)),
        Obtain(credentials, f"Bearer {secret}"),
        Obtain(WANTED, credentials.basic()),
        Token(f"Bearer {secret}", 1),
        Response("https://hub", 200, (("authorization", secret),), secret.encode()),
    ):
        for text in (repr(value), str(value)):
            assert secret not in text
            assert user not in text
            assert credentials.basic().partition(" ")[2] not in text
