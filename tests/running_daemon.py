"""The daemon as its users run it: a process of its own, on a free port."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

ROOT = Path(__file__).resolve().parent.parent


def await_condition(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true answer of `condition`; fails with `what` when none came in time."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain until {what}"
        time.sleep(0.02)


class RunningDaemon:
    """A daemon's process, its port and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log_path: Path) -> None:
        self.process = process
        self._log_path = log_path
        self.port = 0

    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def post(self, body: bytes, timeout: float = 30.0) -> tuple[int, dict[str, Any]]:
        """The status and the answer of one POST on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("POST", "/", body)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def stop(self, number: int = signal.SIGTERM, seconds: float = 15.0) -> int:
        """Sends the signal and gives the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)


@contextlib.contextmanager
def run_daemon(*flags: str, port: int = 0, program: list[str] | None = None) -> Iterator[RunningDaemon]:
    """A daemon with these flags, from when it listens until the end of the block."""
    with tempfile.TemporaryDirectory() as directory:
        log_path = Path(directory) / "log"
        command = [*(program or [sys.executable, str(ROOT / "regstat.py")]), "-port", str(port), *flags]
        with log_path.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)
        daemon = RunningDaemon(process, log_path)
        try:

            def listens() -> bool:
                assert process.poll() is None, f"the daemon ended at its start:\n{daemon.log()}"
                found = re.search(r"Server now listening on :(\d+)", daemon.log())
                if found:
                    daemon.port = int(found.group(1))
                return bool(found)

            await_condition(listens, 20, "the daemon listens")
            yield daemon
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
