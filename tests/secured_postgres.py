"""Debian's Postgres with TLS, a password and a Unix-domain socket; the wheel's has no TLS."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from postgres_server import PostgresServer, running_postgres
from registry.registry_servers import Authority

USER, PASSWORD = "recorder", "open sesame 'till \\ dawn"


class SecuredPostgres:
    """A server that lets `USER` in over TLS, over its Unix-domain socket, or not at all; and this test as everybody."""

    def __init__(self, server: PostgresServer, root: Path, socket_directory: Path) -> None:
        self.server = server
        self.root = root
        self.socket_directory = socket_directory

    @property
    def port(self) -> int:
        return self.server.port

    def new_database(self) -> str:
        """The name of a new, empty database that `USER` may make a schema in."""
        name = self.server.new_database().partition("dbname=")[2].split()[0]
        with closing(self.server.connect("postgres")) as operator:
            operator.run(f"grant create on database {name} to {USER}")
        return name


@contextlib.contextmanager
def secured_postgres(binaries: Path, directory: Path) -> Iterator[SecuredPostgres]:
    """A new server from these binaries, whose certificate is localhost's, until the end of the block."""
    authority = Authority()
    root = directory / "root.pem"
    root.write_bytes(authority.pem())
    with running_postgres(binaries) as server:
        with closing(server.connect("postgres")) as operator:
            data, access = (Path(operator.run(f"show {name}")[0][0]) for name in ("data_directory", "hba_file"))
            owner = data.stat()
            certificate, key = authority.issue(directory, "server", ("localhost",))
            for made, place in ((certificate, data / "server.crt"), (key, data / "server.key")):
                shutil.copyfile(made, place)
                os.chown(place, owner.st_uid, owner.st_gid)
                place.chmod(0o600)
            access.write_text(
                "host all postgres 127.0.0.1/32 trust\n"
                f"hostssl all {USER} 127.0.0.1/32 scram-sha-256\n"
                f"local all {USER} scram-sha-256\n"
            )
            operator.run(f"create role {USER} login password '{PASSWORD.replace(chr(39), chr(39) * 2)}'")
            operator.run("alter system set ssl = on")
            operator.run(f"alter system set unix_socket_directories = '{data.parent}'")
        server.stop()
        server.start()
        yield SecuredPostgres(server, root, data.parent)
