"""What a manifest references: from its bytes, or from what an event tells of it. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from regstat_lib.envelope import Reference, parse_references

OCTET_STREAM = "application/octet-stream"

INDEX_TYPES = frozenset(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)
# Everything that a plain container image is made of. Such an image has no `subject`, which the list of references
# in an event does not show; anything else may be an artifact that has one.
_IMAGE_TYPE_PREFIXES = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.oci.image.layer.",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/vnd.docker.image.rootfs.",
    "application/vnd.docker.distribution.manifest.",
)
# What an index may list beside manifests: build caches list layers so.
_BLOB_TYPE_PREFIXES = (
    "application/vnd.oci.image.config.",
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.container.image.",
    "application/vnd.docker.image.rootfs.",
    "application/vnd.buildkit.cacheconfig.",
)


class NotAManifest(ValueError):
    """The bytes are no manifest of any known kind."""


class Link(NamedTuple):
    """A reference and what it is to the manifest: config, layer, manifest (a child), subject or foreign."""

    digest: str
    kind: str
    media_type: str
    size: int | None


class Contents(NamedTuple):
    """What a manifest links, each digest once; `complete` unless it may link more than its source could tell."""

    links: tuple[Link, ...]
    complete: bool


def contents_of_event(media_type: str, references: Iterable[Reference]) -> Contents:
    """The contents that `target.references` tells of a manifest of this media type.

    Distribution lists the config first and then the layers (`manifest/ocischema`, `manifest/schema2`), the layers
    alone for schema 1, the children for an index; never the `subject`.
    """
    references = tuple(references)
    if media_type in INDEX_TYPES:
        links = [_child(reference) for reference in references]
    else:
        no_config = ".manifest.v1+" in media_type and "docker" in media_type
        links = [
            _part(reference, "config" if position == 0 and not no_config else "layer")
            for position, reference in enumerate(references)
        ]
    plain = all(reference.media_type.startswith(_IMAGE_TYPE_PREFIXES) for reference in references)
    return Contents(_each_once(links), complete=plain or "docker" in media_type)


def parse_manifest(body: bytes) -> Contents:
    """The contents of a manifest, whatever its kind: OCI and Docker images and indexes, artifacts, schema 1.

    What it is shows in its structure, so that media types which nobody knows yet are understood as well.
    Raises NotAManifest for bytes that are none.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise NotAManifest("it is not JSON") from None
    if not isinstance(document, dict):
        raise NotAManifest("it is not a JSON object")
    parts = ("config", "layers", "blobs", "manifests", "fsLayers")
    if not any(name in document for name in parts):
        raise NotAManifest(f"it has none of {', '.join(parts)}")
    links = [_part(reference, "config") for reference in parse_references([document.get("config")])]
    for name in ("layers", "blobs"):
        links += [_part(reference, "layer") for reference in parse_references(document.get(name))]
    links += [_child(reference) for reference in parse_references(document.get("manifests"))]
    links += [_part(reference, "layer") for reference in parse_references(_schema1_layers(document))]
    links += [
        Link(subject.digest, "subject", subject.media_type, subject.size)
        for subject in parse_references([document.get("subject")])
    ]
    return Contents(_each_once(links), complete=True)


def _schema1_layers(document: dict[str, Any]) -> object:
    layers = document.get("fsLayers")
    if not isinstance(layers, list):
        return None
    return [{"digest": layer.get("blobSum")} for layer in layers if isinstance(layer, dict)]


def _part(reference: Reference, kind: str) -> Link:
    return Link(reference.digest, "foreign" if reference.foreign else kind, reference.media_type, reference.size)


def _child(reference: Reference) -> Link:
    if reference.media_type.startswith(_BLOB_TYPE_PREFIXES):
        return _part(reference, "layer")
    return Link(reference.digest, "manifest", reference.media_type, reference.size)


# A digest that a manifest names twice is one link, of the kind that says most of where the object must be.
_RANK = {kind: rank for rank, kind in enumerate(("config", "layer", "manifest", "foreign", "subject"))}


def _each_once(links: Iterable[Link]) -> tuple[Link, ...]:
    found: dict[str, Link] = {}
    for link in links:
        other = found.get(link.digest)
        if other is None or (_RANK[link.kind], link.media_type) < (_RANK[other.kind], other.media_type):
            found[link.digest] = link
    return tuple(found[digest] for digest in sorted(found))
