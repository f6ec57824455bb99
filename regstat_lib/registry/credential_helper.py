"""Ask a Docker credential helper: ``docker-credential-NAME get``.

The protocol is that of docker/docker-credential-helpers: the server's name on standard input, JSON on standard
output, and a fixed sentence with exit status 1 when it has nothing for that server.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time

from regstat_lib.registry.credentials import Credentials, IdentityToken, UserPassword
from regstat_lib.registry.docker_config import Helper

_ANSWER_LIMIT = 64 * 1024
_NOT_FOUND = b"credentials not found"
# The user name that says "the secret is an identity token" (docker/docker-credential-helpers, README).
_IDENTITY_TOKEN_USER = "<token>"


class HelperError(Exception):
    """The helper gave no answer that can be used; the text says why, without anything the helper printed."""


def ask_helper(helper: Helper, timeout: float) -> Credentials | None:
    """The credentials the helper has, None when it has none for that server.

    After ``timeout`` seconds the helper is killed with everything it started, and ``HelperError`` is raised.
    """
    program = f"docker-credential-{helper.name}"
    try:
        process = subprocess.Popen(
            [program, "get"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what a helper complains about may quote a secret
            start_new_session=True,  # so that the whole group can be killed
        )
    except OSError as error:
        raise HelperError(f"{program} cannot be run: {error.strerror}") from None
    deadline = time.monotonic() + timeout
    with process:
        try:
            output = _converse(process, helper.server.encode(), deadline)
            status = process.wait(max(0.0, deadline - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            raise HelperError(f"{program} did not answer within {timeout:g} s") from None
        except OverflowError:
            raise HelperError(f"{program} answered more than {_ANSWER_LIMIT} bytes") from None
        finally:
            # Not yet waited for, so its number cannot be that of another group by now.
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    if status != 0 and _NOT_FOUND in output:
        return None
    if status != 0:
        raise HelperError(f"{program} failed with exit status {status}")
    return _parse(program, output)


def _converse(process: subprocess.Popen[bytes], question: bytes, deadline: float) -> bytes:
    """Standard output until its end; raises ``TimeoutError``, and ``OverflowError`` when it is too much."""
    assert process.stdin is not None
    assert process.stdout is not None
    # A helper that exits without reading says more with its status.
    with contextlib.suppress(BrokenPipeError):
        os.write(process.stdin.fileno(), question)
    process.stdin.close()
    output = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while len(output) <= _ANSWER_LIMIT:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not selector.select(remaining):
                raise TimeoutError
            chunk = os.read(process.stdout.fileno(), _ANSWER_LIMIT)
            if not chunk:
                return output
            output += chunk
    raise OverflowError


def _parse(program: str, output: bytes) -> Credentials | None:
    try:
        answer = json.loads(output)
        username, secret = answer["Username"], answer["Secret"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise HelperError(f"{program} did not answer with JSON that has Username and Secret") from None
    if not isinstance(username, str) or not isinstance(secret, str):
        raise HelperError(f"{program} answered with a Username or Secret that is no string")
    if not secret:
        return None
    return IdentityToken(secret) if username == _IDENTITY_TOKEN_USER else UserPassword(username, secret)
