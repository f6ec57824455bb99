"""The secrets a registry may be shown. Their text appears in no ``repr``."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Union


@dataclass(frozen=True)
class UserPassword:
    """A user name and the password (or access token) that goes with it."""

    username: str = field(repr=False)
    password: str = field(repr=False)

    def basic(self) -> str:
        """The value of an ``Authorization`` header, RFC 7617, in UTF-8."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode("ascii")


@dataclass(frozen=True)
class IdentityToken:
    """An OAuth2 refresh token, which Docker's configuration calls ``identitytoken``."""

    token: str = field(repr=False)


Credentials = Union[UserPassword, IdentityToken]
