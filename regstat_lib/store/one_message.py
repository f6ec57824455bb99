"""A prepared statement of pg8000 that is sent in one piece and answered in one.

pg8000 asks for an answer after each step of a statement (Flush), so that the server sends three pieces, and this thread
wakes for each and takes the interpreter's lock. The steps need no answers of their own: after an error the server skips
to the Sync that ends them (Postgres documentation, "Message Flow", "Extended Query").
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pg8000.native

# Of the unnamed portal, with no limit of rows; and the end.
_EXECUTE_AND_SYNC = b"E" + struct.pack("!i", 9) + b"\0" + struct.pack("!i", 0) + b"S" + struct.pack("!i", 4)
_PIECE = 256 * 1024


class OneMessage:
    """A statement without rows that are of interest; `run` it as often as needed."""

    def __init__(self, connection: pg8000.native.Connection, sql: str) -> None:
        """Prepares it; its parameters are pg8000's, `:name` in the order of their first use."""
        self._connection = connection
        self._statement: str = sql
        self._name: bytes = connection.prepare(sql).name_bin

    def run(self, *parameters: str) -> None:
        """Runs it, in a transaction of its own unless one is open; raises what pg8000 and the socket raise."""
        from pg8000.core import Context

        values = [parameter.encode() for parameter in parameters]
        # Formats: text for all parameters, and for all columns.
        parts = [b"\0", self._name, struct.pack("!hh", 0, len(values))]
        for value in values:
            parts += (struct.pack("!i", len(value)), value)
        parts += (struct.pack("!h", 0), _EXECUTE_AND_SYNC)
        length = 4 + sum(map(len, parts)) - len(_EXECUTE_AND_SYNC)
        link = self._connection._usock
        message = memoryview(b"".join((b"B", struct.pack("!i", length), *parts)))
        while message:
            # Not `sendall`, to which the time that a server may be silent is that for all of it.
            message = message[link.send(message[:_PIECE]) :]
        self._connection.handle_messages(Context(self._statement, columns=[], input_funcs=[]))
