"""What a registry really holds: every tag, manifest and blob, asked one by one.

Its requests say that they are regstat's own, so that they are not counted as use.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from real_registry import RealRegistry, Response
from registry_day import ACCEPT_ALL, SCHEMA_1, Ledger, Reference

USER_AGENT = "regstat/crawl"


@dataclass(frozen=True)
class Content:
    """A manifest that the registry holds. size is that of the bytes the digest is made of."""

    media_type: str
    size: int
    references: tuple[Reference, ...]


@dataclass(frozen=True)
class Held:
    """tags: (repository, tag) to the digest it resolves to. manifests and blobs: the digests in each repository.
    contents: what each manifest is that any repository holds. sizes: of each blob that any repository holds, in bytes.
    """

    registry: str
    tags: Mapping[tuple[str, str], str]
    manifests: Mapping[str, frozenset[str]]
    blobs: Mapping[str, frozenset[str]]
    contents: Mapping[str, Content]
    sizes: Mapping[str, int]

    def live_manifests(self) -> frozenset[str]:
        return frozenset().union(*self.manifests.values())

    def live_blobs(self) -> frozenset[str]:
        return frozenset().union(*self.blobs.values())

    def links(self) -> frozenset[tuple[str, str]]:
        """(manifest, referenced digest) for each live manifest, whether or not the other end is there;
        layers that are elsewhere by their own word are left out."""
        return frozenset(
            (digest, reference.digest)
            for digest, content in self.contents.items()
            for reference in content.references
            if reference.role != "foreign"
        )

    def foreign_links(self) -> frozenset[tuple[str, str]]:
        """(manifest, layer) for the layers that live manifests name by a URL elsewhere."""
        return frozenset(
            (digest, reference.digest)
            for digest, content in self.contents.items()
            for reference in content.references
            if reference.role == "foreign"
        )


def crawl(registry: RealRegistry, ledger: Ledger) -> Held:
    """Asks for all that the day ever had a hand in, in every repository, and for what the registry itself lists."""
    listed = json.loads(_get(registry, "/v2/_catalog?n=1000").body)["repositories"]
    repositories = sorted(ledger.repositories.union(listed))
    tags = {
        (repository, tag): digest
        for repository in repositories
        for tag in _listed_tags(registry, repository)
        if (digest := _resolved(registry, repository, tag)) is not None
    }
    contents: dict[str, Content] = {}
    manifests: dict[str, frozenset[str]] = {}
    for repository in repositories:
        here = set()
        for digest in sorted(ledger.manifests.keys() | set(tags.values())):
            answer = _get(registry, f"/v2/{repository}/manifests/{digest}")
            if answer.status == 200:
                here.add(digest)
                contents[digest] = _content(digest, answer)
            else:
                assert answer.status == 404, (repository, digest, answer)
        manifests[repository] = frozenset(here)
    sizes: dict[str, int] = {}
    blobs: dict[str, frozenset[str]] = {}
    referenced = {
        reference.digest
        for manifest in ledger.manifests.values()
        for reference in manifest.references
        if reference.digest not in ledger.manifests
    }
    for repository in repositories:
        here = set()
        for digest in sorted(ledger.blobs.keys() | referenced):
            answer = _get(registry, f"/v2/{repository}/blobs/{digest}", method="HEAD")
            if answer.status == 200:
                here.add(digest)
                sizes[digest] = int(answer.headers["Content-Length"])
            else:
                assert answer.status == 404, (repository, digest, answer)
        blobs[repository] = frozenset(here)
    return Held(registry.host, tags, manifests, blobs, contents, sizes)


def _get(registry: RealRegistry, path: str, method: str = "GET") -> Response:
    return registry.request(method, path, headers={"User-Agent": USER_AGENT, "Accept": ACCEPT_ALL})


def _listed_tags(registry: RealRegistry, repository: str) -> list[str]:
    answer = _get(registry, f"/v2/{repository}/tags/list?n=1000")
    # A repository that never had a manifest is not known by name, and one that has no tag any more lists null.
    return sorted(json.loads(answer.body)["tags"] or []) if answer.status == 200 else []


def _resolved(registry: RealRegistry, repository: str, tag: str) -> str | None:
    answer = _get(registry, f"/v2/{repository}/manifests/{tag}", method="HEAD")
    return answer.headers["Docker-Content-Digest"] if answer.status == 200 else None


def _content(digest: str, answer: Response) -> Content:
    media_type = answer.headers["Content-Type"]
    document = json.loads(answer.body)
    if media_type == SCHEMA_1:
        signed = _signed_bytes(answer.body)
        layers = tuple(Reference("layer", "", layer["blobSum"], None) for layer in document["fsLayers"])
        assert _sha256(signed) == digest
        return Content(media_type, len(signed), layers)
    assert _sha256(answer.body) == digest
    references = []
    if "config" in document:
        references.append(_reference("config", document["config"]))
    for layer in document.get("layers", []):
        references.append(_reference("foreign" if layer.get("urls") else "layer", layer))
    references += [_reference("child", child) for child in document.get("manifests", [])]
    if "subject" in document:
        references.append(_reference("subject", document["subject"]))
    return Content(media_type, len(answer.body), tuple(references))


def _reference(role: str, descriptor: Mapping[str, object]) -> Reference:
    size = descriptor["size"]
    assert isinstance(size, int)
    return Reference(role, str(descriptor["mediaType"]), str(descriptor["digest"]), size)


def _signed_bytes(body: bytes) -> bytes:
    """What the signatures of a schema 1 manifest are about, and its digest is of: the body without them."""

    def decoded(text: str) -> bytes:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

    protected = json.loads(decoded(json.loads(body)["signatures"][0]["protected"]))
    return body[: protected["formatLength"]] + decoded(protected["formatTail"])


def _sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()
