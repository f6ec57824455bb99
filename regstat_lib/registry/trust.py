"""TLS: whom to trust and which certificate to show, with Docker's ``certs.d`` directory."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable
from pathlib import Path


class TrustError(ValueError):
    """A certificate or key cannot be used: which file, and what is wrong."""


class Trust:
    """TLS contexts by host. Thread-safe.

    A directory ``HOST`` or ``HOST:PORT`` in ``certs_dir`` holds ``*.crt``, authorities to trust beside the system's,
    and pairs ``NAME.cert`` and ``NAME.key`` to show to that host (docs.docker.com, "Use CA certificates with Docker").
    Files that change are used without a restart. The system's authorities are those of OpenSSL, which reads
    ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` from the environment.
    """

    def __init__(self, certs_dir: Path, prepare: Callable[[ssl.SSLContext], None] = lambda _: None) -> None:
        """``prepare`` is called once with each new context."""
        self._certs_dir = certs_dir
        self._prepare = prepare
        self._lock = threading.Lock()
        self._contexts: dict[tuple[tuple[Path, ...], bool, str], tuple[object, ssl.SSLContext]] = {}

    def context(self, shown_to: tuple[str, ...], trusted_by: tuple[str, ...], verify: bool) -> ssl.SSLContext:
        """The context for a connection.

        ``shown_to`` are the names of the host to connect to, whose client certificates are used; ``trusted_by`` are
        further hosts whose authorities count: those of a registry also vouch for its token server, as in Docker.
        Hosts are trusted not to be paths. Raises ``TrustError``.
        """
        own = tuple(dict.fromkeys(shown_to))
        others = tuple(name for name in dict.fromkeys(trusted_by) if name not in own)
        files = [path for name in own for path in self._files(name)]
        files += [path for name in others for path in self._files(name) if path.suffix == ".crt"]
        system = os.environ.get("SSL_CERT_FILE", "")
        version = tuple(_version(path) for path in [*files, *([Path(system)] if system else [])])
        # The files and not the hosts are the key: redirects may lead to ever new hosts, which have none.
        key = (tuple(files), verify, system)
        with self._lock:
            made = self._contexts.get(key)
            if made is None or made[0] != version:
                made = self._contexts[key] = (version, self._make(files, verify, system))
            return made[1]

    def _files(self, name: str) -> list[Path]:
        try:
            found = sorted((self._certs_dir / name).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise TrustError(f"{self._certs_dir / name} cannot be read: {error.strerror}") from None
        return [path for path in found if path.suffix in (".crt", ".cert", ".key")]

    def _make(self, files: list[Path], verify: bool, system: str) -> ssl.SSLContext:
        if system and not os.access(system, os.R_OK):
            raise TrustError(f"SSL_CERT_FILE names {system}, which cannot be read")
        context = ssl.create_default_context()
        # Python 3.13 began to insist on extensions that many private authorities have never had, and Docker does not.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        for path in files:
            try:
                if path.suffix == ".crt":
                    context.load_verify_locations(cafile=path)
                elif path.suffix == ".cert":
                    if not path.with_suffix(".key").exists():
                        raise TrustError(f"{path} cannot be used: {path.stem}.key is missing beside it")
                    # An encrypted key must fail and not ask the terminal for its password.
                    context.load_cert_chain(path, path.with_suffix(".key"), password=lambda: "")
            except OSError:
                raise TrustError(_complaint(path)) from None
        self._prepare(context)
        return context


def _complaint(path: Path) -> str:
    if path.suffix == ".crt":
        return f"{path} cannot be used: expected certificates in PEM"
    return f"{path} cannot be used: expected a certificate in PEM and its key, not encrypted, in {path.stem}.key"


def _version(path: Path) -> object:
    try:
        status = path.stat()
    except OSError as error:
        return str(path), error.errno
    return str(path), status.st_ino, status.st_size, status.st_mtime_ns
