"""Parse ``WWW-Authenticate``, RFC 9110 section 11.6.1. Pure; never raises."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SEPARATORS = re.compile(r"[ \t,]*")
_SPACES = re.compile(r"[ \t]*")
_EQUALS = re.compile(r"[ \t]*=[ \t]*")
# The end of the text closes a string whose quote is missing: the realm before it is still worth knowing.
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)(?:"|\\?$)', re.DOTALL)
_UNQUOTED = re.compile(r"[^ \t,]*")
# Padding or nothing must follow, or else it is the name of a parameter: "realm=x" against "abc==".
_TOKEN68 = re.compile(r"([A-Za-z0-9._~+/-]+=*)[ \t]*(?=,|$)")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


class Challenge(NamedTuple):
    """One way to authenticate that a server offers."""

    scheme: str
    """Lower-case, such as ``basic`` or ``bearer``."""
    parameters: Mapping[str, str]
    """Names in lower case, values without quotes and escapes. Of a name given twice the first value counts."""
    token68: str = ""
    """What a scheme such as Negotiate has in place of parameters."""


def parse_challenges(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """All challenges in the values of a response's ``WWW-Authenticate`` headers, in their order.

    Several challenges may share a header or come in several. What is no challenge is passed over:
    a server's mistake beside a challenge that can be understood must not hide it.
    """
    return tuple(challenge for header in headers for challenge in _parse(header))


def _parse(header: str) -> list[Challenge]:
    found: list[Challenge] = []
    parameters: dict[str, str] = {}
    position = _end(_SEPARATORS, header, 0)
    while position < len(header):
        name = _TOKEN.match(header, position)
        if name is None:
            position = _end(_SEPARATORS, header, position + 1)
            continue
        equals = _EQUALS.match(header, name.end())
        if equals and found:
            value, position = _value(header, equals.end())
            parameters.setdefault(name.group().lower(), value)
        elif equals:
            _, position = _value(header, equals.end())
        else:
            position = _end(_SPACES, header, name.end())
            token68 = _TOKEN68.match(header, position) if position > name.end() else None
            parameters = {}
            found.append(Challenge(name.group().lower(), parameters, token68.group(1) if token68 else ""))
            position = token68.end() if token68 else position
        position = _end(_SEPARATORS, header, position)
    return found


def _value(header: str, position: int) -> tuple[str, int]:
    quoted = _QUOTED.match(header, position)
    if quoted:
        return _ESCAPE.sub(r"\1", quoted.group(1)), quoted.end()
    end = _end(_UNQUOTED, header, position)
    return header[position:end], end


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position
