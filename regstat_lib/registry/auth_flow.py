"""The conversation with a registry and its token server, as generators that do no I/O.

A flow yields what it needs (``Send`` a request, ``Obtain`` an authorization), is sent the outcome, and returns a
response. Whoever drives it owns the sockets, the caches and the clock. The rules are those of the distribution
project's "Token Authentication Specification" and "OAuth2 Token Authentication", and RFC 9110 for redirects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import NamedTuple, Union
from urllib.parse import urlencode, urljoin, urlsplit

from regstat_lib.registry.address import origin, split_http_url
from regstat_lib.registry.challenge import Challenge, parse_challenges
from regstat_lib.registry.credentials import Credentials, IdentityToken, UserPassword
from regstat_lib.registry.http_message import Request, Response
from regstat_lib.registry.trouble import FetchError, Trouble

TOKEN_LIMIT = 64 * 1024
MAX_REDIRECTS = 5
# Token Authentication Specification: "expires_in ... If omitted, this defaults to 60 seconds."
_DEFAULT_LIFE = 60.0
_LONGEST_LIFE = 24 * 3600.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# What RFC 6750 and more allow, and nothing that could begin another header.
_BEARER = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class Visitor:
    """Who asks a registry, and under which rules."""

    registry: str
    repository: str
    credentials: Credentials | None
    """What may be shown to this registry; None when there is nothing, or nothing that may be sent to this address."""
    explanation: str
    """Where the credentials are from, or why there are none: part of a sentence for the operator."""
    may_see_credentials: Callable[[str], bool]
    """Whether a secret may be sent to a URL."""


class TokenRequest(NamedTuple):
    """What a bearer challenge asks for."""

    realm: str
    service: str
    scope: str


class Token(NamedTuple):
    """An ``Authorization`` header's value and for how many seconds it can be used."""

    authorization: str
    life: float

    def __repr__(self) -> str:
        return f"Token(life={self.life})"


class Send(NamedTuple):
    """Wanted: the response to a request, redirects not followed."""

    request: Request


class Obtain(NamedTuple):
    """Wanted: an ``Authorization`` header's value that is not ``rejected``."""

    want: TokenRequest | UserPassword
    rejected: str | None

    def __repr__(self) -> str:
        return f"Obtain({self.want})"


Conversation = Generator[Union[Send, Obtain], Union[Response, str], Response]
Exchange = Generator[Send, Response, Response]


def converse(request: Request, visitor: Visitor, held: str | None) -> Conversation:
    """Ask a registry, and once more with an authorization when it challenges.

    ``held`` is the authorization that served before. When it is refused, a new one is obtained once and no more.
    Only the address that was asked is shown it, and only its own challenge is answered.
    """
    response = yield from _follow(replace(request, authorization=held), visitor)
    if response.status != 401 or origin(response.url) != origin(request.url):
        return response
    want = _choose(parse_challenges(response.header_values("www-authenticate")), visitor)
    authorization = yield Obtain(want, held)
    assert isinstance(authorization, str)
    if authorization == held:
        return response
    return (yield from _follow(replace(request, authorization=authorization), visitor))


def token_exchange(want: TokenRequest, visitor: Visitor) -> Generator[Send, Response, Token]:
    """Ask the token server. Without credentials the token is an anonymous one."""
    place = f"the token server {urlsplit(want.realm).netloc} of {visitor.registry}"
    response = yield from _follow(_token_query(want, visitor.credentials), visitor)
    if response.status in (200, 201):
        return _token(response.body, visitor.registry, place)
    if response.status in (400, 401, 403):
        message = f"{place} gives no token ({response.status}): {advice(visitor)}"
        raise FetchError(Trouble.REFUSED, visitor.registry, message)
    if response.status in (429, 503):
        # The registry's own Retry-After and this one are read by whoever has a clock.
        raise TokenServerBusy(visitor.registry, f"{place} asks to be left alone ({response.status})", response)
    trouble = Trouble.UNREACHABLE if response.status >= 500 else Trouble.UNUSABLE
    raise FetchError(trouble, visitor.registry, f"{place} answered with status {response.status}")


class TokenServerBusy(FetchError):
    """429 or 503 of a token server."""

    def __init__(self, registry: str, message: str, response: Response) -> None:
        super().__init__(Trouble.BUSY, registry, message)
        self.response = response


def advice(visitor: Visitor) -> str:
    """What the operator can do when a registry refuses him."""
    if visitor.credentials is None:
        return f"no credentials were sent, {visitor.explanation}"
    return f"check the credentials from {visitor.explanation} with `docker login {visitor.registry}`"


def _choose(challenges: tuple[Challenge, ...], visitor: Visitor) -> TokenRequest | UserPassword:
    """The challenge to answer: bearer before basic, because a token is worth less to a thief than a password."""
    for challenge in challenges:
        if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
            return _token_request(challenge, visitor)
    refused = f"{visitor.registry} asks for credentials"
    if any(challenge.scheme == "basic" for challenge in challenges):
        if isinstance(visitor.credentials, UserPassword):
            return visitor.credentials
        if visitor.credentials is None:
            raise FetchError(Trouble.REFUSED, visitor.registry, f"{refused}: {advice(visitor)}")
        refused += " with a user name and a password, but -docker-config has an identity token for it"
        raise FetchError(Trouble.REFUSED, visitor.registry, refused)
    raise FetchError(Trouble.REFUSED, visitor.registry, f"{refused} neither with basic nor with a bearer realm")


def _token_request(challenge: Challenge, visitor: Visitor) -> TokenRequest:
    realm = challenge.parameters["realm"]
    parts = split_http_url(realm)
    if parts is None:
        message = f"{visitor.registry} names a token server that is no http(s) URL of a host, so it is not asked"
        raise FetchError(Trouble.UNUSABLE, visitor.registry, message)
    if visitor.credentials is not None and not visitor.may_see_credentials(realm):
        message = (
            f"{visitor.registry} names a token server on plain http, which is shown no credentials:"
            f" -insecure-registry {parts.netloc} would allow it"
        )
        raise FetchError(Trouble.REFUSED, visitor.registry, message)
    scope = challenge.parameters.get("scope") or f"repository:{visitor.repository}:pull"
    return TokenRequest(parts._replace(fragment="").geturl(), challenge.parameters.get("service", ""), scope)


def _token_query(want: TokenRequest, credentials: Credentials | None) -> Request:
    fields = {"service": want.service} if want.service else {}
    if isinstance(credentials, IdentityToken):
        fields.update(grant_type="refresh_token", refresh_token=credentials.token)
        fields.update(scope=want.scope, client_id="regstat")
        return Request(want.realm, TOKEN_LIMIT, form=urlencode(fields).encode("ascii"))
    # Several scopes in one challenge are separated by spaces and asked for one by one.
    query = urlencode([*fields.items(), *(("scope", scope) for scope in want.scope.split())])
    url = want.realm + ("&" if urlsplit(want.realm).query else "?") + query
    return Request(url, TOKEN_LIMIT, authorization=credentials.basic() if credentials else None)


def _token(body: bytes, registry: str, place: str) -> Token:
    try:
        answer = json.loads(body)
        token = answer.get("token") or answer.get("access_token")
    except (ValueError, AttributeError, RecursionError):
        token = None
    if not isinstance(token, str) or not _BEARER.fullmatch(token):
        raise FetchError(Trouble.UNUSABLE, registry, f"{place} did not answer with JSON that has a token")
    return Token(f"Bearer {token}", _life(answer.get("expires_in")))


def _life(expires_in: object) -> float:
    """For how many seconds to use a token: less than it is valid, because using it takes time too."""
    if isinstance(expires_in, str) and expires_in.isdecimal() and len(expires_in) < 10:
        expires_in = int(expires_in)
    if isinstance(expires_in, bool) or not isinstance(expires_in, (int, float)) or not expires_in > 0:
        expires_in = _DEFAULT_LIFE
    valid = float(min(expires_in, _LONGEST_LIFE))
    return max(valid - 10, valid / 2)


def _follow(request: Request, visitor: Visitor) -> Exchange:
    """The response after redirects, which never carry an authorization or a form to another origin."""
    for _ in range(MAX_REDIRECTS + 1):
        response = yield Send(request)
        if response.status not in _REDIRECTS:
            return response
        request = _redirected(request, response, visitor)
    message = f"{visitor.registry} redirects more than {MAX_REDIRECTS} times"
    raise FetchError(Trouble.UNUSABLE, visitor.registry, message)


def _redirected(request: Request, response: Response, visitor: Visitor) -> Request:
    try:
        target = urljoin(request.url, response.header("location"))
    except ValueError:
        target = ""
    parts = split_http_url(target) if response.header("location") else None
    if parts is None:
        message = f"{visitor.registry} redirects to something that is no http(s) URL of a host, which is not followed"
        raise FetchError(Trouble.UNUSABLE, visitor.registry, message)
    if request.form is not None:
        # A form holds the identity token, and a redirected POST may turn into a GET: there is no safe way to go on.
        message = f"the token server of {visitor.registry} redirects a POST, which is not followed"
        raise FetchError(Trouble.UNUSABLE, visitor.registry, message)
    same = origin(target) == origin(request.url)
    url = parts._replace(fragment="").geturl()
    return replace(request, url=url, authorization=request.authorization if same else None)
