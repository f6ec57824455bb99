"""The daemon's server and all that it does with a request, but for the database: the recorder says yes at once.

Prints its port and answers until its standard input ends. `ingest.py` starts it for the floor of each case.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from regstat_lib.batch import Entry
from regstat_lib.recorder import Outcome, Settle
from regstat_lib.server import WebhookServer
from regstat_lib.webhook import Webhook


class NoRecorder:
    """Stands where the recorder stands."""

    def enqueue(self, entries: Sequence[Entry], settle: Settle) -> None:
        """Records nothing."""
        settle(Outcome(len(entries), 0))


def main() -> None:
    server = WebhookServer(0, Webhook(NoRecorder(), {}, lambda: "2026-01-01 00:00:00.000000").answer, 16 * 2**20)
    server.serve()
    print(server.port, flush=True)
    sys.stdin.read()
    server.stop(1.0)


if __name__ == "__main__":
    main()
