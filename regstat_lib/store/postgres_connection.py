"""Connections to Postgres: logging in, with TLS or without, and what pg8000 says when something is wrong."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from regstat_lib.store import Conflict, Rejected, Unavailable
from regstat_lib.store.connection_string import BadConnectionString, ConnectionString, tls_contexts

if TYPE_CHECKING:
    import pg8000.native


def require_driver() -> None:
    """Raises Unavailable when pg8000 is not installed."""
    try:
        import pg8000.native  # noqa: F401  (its absence is found here, before the first use)
    except ImportError as error:
        raise Unavailable(
            "Postgres needs the Python package pg8000, which is not installed: install it (pip install pg8000), or"
            " keep the data in a file with -sqlite regstat.db."
        ) from error


def log_in(target: ConnectionString) -> pg8000.native.Connection:
    """A new connection, over TLS as `target` asks for it; raises what `translated` translates."""
    import pg8000.native

    failures: list[Exception] = []
    for context in tls_contexts(target):
        try:
            return _attempt(target, context)
        except (pg8000.native.Error, OSError) as error:
            failures.append(error)
    raise _most_telling(failures)


def _attempt(target: ConnectionString, context: ssl.SSLContext | bool) -> pg8000.native.Connection:
    import pg8000.native

    # The host's name is what its certificate is for, whatever its address.
    at_address = (
        None
        if target.address is None
        else socket.create_connection((target.address, target.port), target.connect_timeout)
    )
    try:
        return pg8000.native.Connection(
            user=target.user,
            password=target.password,
            database=target.database,
            host=target.host,
            port=target.port,
            unix_sock=target.unix_socket,
            sock=at_address,
            # False is plain text; None would try TLS without saying so.
            ssl_context=context,
            timeout=target.connect_timeout,
            application_name=target.application_name,
            startup_params=dict(target.startup) or None,
        )
    except BaseException as error:
        if at_address is not None:
            at_address.close()
        if target.password is None and isinstance(error, AttributeError) and "NoneType" in str(error):
            # All that pg8000 says of it.
            raise Unavailable(
                f"The {target.description} asks for a password and none is given: put it into the connection string,"
                " PGPASSWORD or a password file."
            ) from error
        # What pg8000 was told, it hides when it fails to say goodbye to a server that has left.
        told: BaseException | None = error
        while told is not None and not isinstance(told, pg8000.native.DatabaseError):
            told = told.__context__
        if told is not None and told is not error:
            raise told from None
        raise


def _most_telling(failures: Sequence[Exception]) -> Exception:
    """Of those with TLS and without: what the server said but that this way in is closed (28000), or else the last."""
    import pg8000.native

    told: list[Exception] = [
        error
        for error in failures
        if isinstance(error, pg8000.native.DatabaseError) and _details(error).get("C") != "28000"
    ]
    return told[0] if told else failures[-1]


def _details(error: pg8000.native.DatabaseError) -> dict[str, str]:
    """The fields of an error, by their letters (Postgres documentation, "Error and Notice Message Fields")."""
    return dict(error.args[0]) if error.args and isinstance(error.args[0], dict) else {}


@contextlib.contextmanager
def translated(description: str) -> Iterator[None]:
    """Turns the driver's errors into those of the store, by SQLSTATE (Postgres documentation, appendix A)."""
    import pg8000.core
    import pg8000.native

    try:
        yield
    except pg8000.native.DatabaseError as error:
        details = _details(error)
        state, message = str(details.get("C", "")), str(details.get("M", error))
        if state in ("40001", "40P01", "55P03"):
            raise Conflict(f"Another transaction was in the way: {message}.") from error
        if state[:2] in ("21", "22", "23") or state == "54000":
            raise Rejected(f"Postgres refused a value: {message}") from error
        raise Unavailable(f"The {description} answered: {message} (SQLSTATE {state or 'unknown'}).") from error
    except pg8000.core.scramp.ScramException as error:
        raise Unavailable(f"The {description} and regstat do not agree on the password: {error}.") from error
    except BadConnectionString as error:
        raise Unavailable(str(error)) from error
    except (pg8000.native.Error, OSError, AttributeError, ValueError, struct.error) as error:
        # pg8000 shows a connection that broke in an answer as one of the last three.
        cause = error.__cause__ or error
        raise Unavailable(f"The {description} cannot be reached: {cause}.") from error
