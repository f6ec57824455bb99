"""Notifications as registries send them, and the rows that the daemon makes of them."""

from __future__ import annotations

import hashlib
import itertools
import json
import sqlite3
import uuid
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

import pg8000.native

from regstat_lib.store.connection_string import parse_connection_string

BLOB = "application/octet-stream"
IMAGE = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

_START = datetime(2026, 5, 1, 12)
_seconds = itertools.count()


def digest_of(content: str | bytes) -> str:
    return "sha256:" + hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def at(second: float) -> str:
    """A time that many seconds after the start of the tests' calendar, as a registry writes it."""
    return f"{(_START + timedelta(seconds=second)).isoformat(timespec='microseconds')}Z"


def column(second: float) -> str:
    """The same time as the tables' columns show it."""
    return (_START + timedelta(seconds=second)).isoformat(" ", "microseconds")


def event(
    action: str = "push",
    digest: str = "",
    *,
    tag: str = "",
    media_type: str = BLOB,
    repository: str = "team/app",
    host: str = "registry.example",
    timestamp: str | None = None,
    references: list[dict[str, Any]] | None = None,
    url: str = "",
    method: str = "",
    user_agent: str = "docker/24.0",
    identity: str = "",
) -> dict[str, Any]:
    """An event as Docker distribution sends it; its time is later than that of every one made before."""
    target: dict[str, Any] = {"repository": repository, "url": url}
    if digest:
        target["digest"] = digest
    if tag:
        target["tag"] = tag
    if action != "delete":
        target["mediaType"] = media_type
    if references is not None:
        target["references"] = references
    return {
        "id": identity or str(uuid.uuid4()),
        "timestamp": at(next(_seconds)) if timestamp is None else timestamp,
        "action": action,
        "target": target,
        "request": {"host": host, "method": method or {"pull": "GET"}.get(action, "PUT"), "useragent": user_agent},
        "actor": {},
    }


def image(digest: str, *layers: str, tag: str = "", **details: Any) -> dict[str, Any]:
    """The push of an image whose event tells what it is made of, the first of `layers` being its config."""
    references = [
        {"mediaType": LAYER if position else CONFIG, "digest": layer, "size": 10}
        for position, layer in enumerate(layers)
    ]
    return event("push", digest, tag=tag, media_type=IMAGE, references=references, **details)


def envelope(*events: dict[str, Any]) -> bytes:
    return json.dumps({"events": events}).encode()


def rows(flags: list[str], query: str, **parameters: Any) -> list[tuple[Any, ...]]:
    """The rows of a query on the database of these flags; `{s}` in it stands before a table's name."""
    if flags[0] == "-sqlite":
        with closing(sqlite3.connect(flags[1], timeout=30)) as connection:
            return connection.execute(query.replace("{s}", ""), parameters).fetchall()
    with closing(pg_connect(flags[1])) as postgres:
        return [tuple(row) for row in postgres.run(query.replace("{s}", "regstat."), **parameters) or ()]


def change(flags: list[str], *statements: str) -> None:
    """Runs statements of somebody else's on the database of these flags, each committed."""
    if flags[0] == "-sqlite":
        with closing(sqlite3.connect(flags[1], timeout=30, isolation_level=None)) as connection:
            for statement in statements:
                connection.execute(statement.replace("{s}", ""))
        return
    with closing(pg_connect(flags[1])) as postgres:
        for statement in statements:
            postgres.run(statement.replace("{s}", "regstat."))


def pg_connect(connection_string: str) -> pg8000.native.Connection:
    target = parse_connection_string(connection_string, {})
    return pg8000.native.Connection(
        target.user,
        host=target.host,
        port=target.port,
        database=target.database,
        password=target.password,
        ssl_context=False,
        timeout=60,
    )


LIVE = {
    "blobs": "digest, pushed, pulled",
    "manifests": "digest, pushed, pulled",
    "manifest_blob": "manifest_digest, blob_digest",
    "tags": "name, registry, repository, tag, manifest_digest, pushed, pulled",
}
DELETED = {
    "deleted_blobs": "digest, pushed, pulled, deleted",
    "deleted_manifests": "digest, pushed, pulled, deleted",
    "deleted_manifest_blob": "manifest_digest, blob_digest",
    "deleted_tags": "name, registry, repository, tag, manifest_digest, pushed, pulled, deleted",
}


def tables(flags: list[str], which: dict[str, str] = LIVE) -> dict[str, set[tuple[Any, ...]]]:
    """The rows of tables, by the columns that the original has."""
    return {name: set(rows(flags, f"select {columns} from {{s}}{name}")) for name, columns in which.items()}
