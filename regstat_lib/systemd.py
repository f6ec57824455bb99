"""What systemd and a service tell each other: readiness, the watchdog, sockets that were opened for it.

Sources: systemd's manual pages sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3), which describe the protocols as
stable. Where another program started regstat, none of it does anything.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping, MutableMapping

# sd_listen_fds(3): SD_LISTEN_FDS_START.
_FIRST_PASSED = 3


def notify(state: str, environment: Mapping[str, str] = os.environ) -> None:
    """Tells the service manager `state`, such as READY=1, STOPPING=1 or WATCHDOG=1; never fails."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # Linux's abstract sockets
    # A service that cannot tell that it is well serves all the same.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        link.settimeout(1.0)
        link.sendto(state.encode(), address)


def watchdog_seconds(environment: Mapping[str, str] = os.environ, process: int | None = None) -> float | None:
    """Within how many seconds WATCHDOG=1 is expected again and again, or None when nobody watches this process."""
    watched = environment.get("WATCHDOG_PID", "")
    if watched and watched != str(os.getpid() if process is None else process):
        return None
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or int(microseconds) == 0:
        return None
    return int(microseconds) / 1_000_000


def passed_listener(
    environment: MutableMapping[str, str] = os.environ, process: int | None = None, first: int = _FIRST_PASSED
) -> socket.socket | None:
    """The listening TCP socket that the service manager opened for this process, or None when it passed none.

    Forgets it in the environment, so that no child process takes it for its own. Raises ValueError when what was
    passed cannot be used.
    """
    passed = environment.pop("LISTEN_FDS", "")
    receiver = environment.pop("LISTEN_PID", "")
    environment.pop("LISTEN_FDNAMES", None)
    if not passed.isdigit() or int(passed) == 0 or receiver != str(os.getpid() if process is None else process):
        return None
    for descriptor in range(first, first + int(passed)):
        os.set_inheritable(descriptor, False)
    if int(passed) != 1:
        raise ValueError(f"The service manager passed {passed} sockets; regstat listens on one: name one ListenStream.")
    listener = socket.socket(fileno=first)
    if listener.family not in (socket.AF_INET, socket.AF_INET6) or not _listens(listener):
        listener.close()
        raise ValueError("The socket that the service manager passed is no listening TCP socket: use ListenStream.")
    return listener


def _listens(candidate: socket.socket) -> bool:
    accepting = getattr(socket, "SO_ACCEPTCONN", None)
    return candidate.type == socket.SOCK_STREAM and (
        accepting is None or bool(candidate.getsockopt(socket.SOL_SOCKET, accepting))
    )
