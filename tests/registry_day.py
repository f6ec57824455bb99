"""A random day on a real registry: the same seed makes the same images and the same operations in the same order.

Few repositories, tags and layers, so that the same names and digests meet again and again. What was done is kept in a
ledger; it is the caller's own account, made from the registry's answers and never from its notifications.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import tarfile
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Callable, NamedTuple

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from real_registry import RealRegistry, Response

SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"
SCHEMA_2 = "application/vnd.docker.distribution.manifest.v2+json"
MANIFEST_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
ACCEPT_ALL = ", ".join((SCHEMA_2, MANIFEST_LIST, OCI_MANIFEST, OCI_INDEX, SCHEMA_1))

SCHEMA_2_CONFIG = "application/vnd.docker.container.image.v1+json"
SCHEMA_2_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
SCHEMA_2_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"

REPOSITORIES = ("base", "team/app", "team/web")
TAGS = ("latest", "v1", "v2")
# The last one only begins like regstat's own and has to be counted.
USER_AGENTS = ("docker/24.0.7 go/go1.20", "containerd/1.7.2", "Go-http-client/1.1", "regstatistics/1.0")


class Reference(NamedTuple):
    """role is config, layer, child (of an index), subject, or foreign: a layer that has a URL elsewhere.
    size is None where the manifest does not say it (schema 1)."""

    role: str
    media_type: str
    digest: str
    size: int | None


class Manifest(NamedTuple):
    """A manifest to push. body is what goes over the wire, size counts the bytes that the digest is made of."""

    digest: str
    media_type: str
    body: bytes
    size: int
    references: tuple[Reference, ...]

    def blobs(self) -> tuple[str, ...]:
        """What a pull of it downloads beside it."""
        return tuple(reference.digest for reference in self.references if reference.role in ("config", "layer"))

    def children(self) -> tuple[str, ...]:
        return tuple(reference.digest for reference in self.references if reference.role == "child")

    def is_image(self) -> bool:
        """A plain image: everything in it is what every client understands."""
        plain = {OCI_CONFIG, OCI_LAYER, SCHEMA_2_CONFIG, SCHEMA_2_LAYER}
        return self.media_type in (SCHEMA_2, OCI_MANIFEST) and all(
            reference.media_type in plain and reference.role != "foreign" for reference in self.references
        )


class Thing(NamedTuple):
    """kind is blob or manifest, named by its digest, or tag, named repository:tag."""

    kind: str
    name: str


class Window(NamedTuple):
    """An operation went on from start to end, in UTC without a zone."""

    start: datetime
    end: datetime


@dataclass
class Ledger:
    """What was done. pushed, pulled and deleted have the newest time for each thing:
    blobs that came as part of a pull of their manifest are not in pulled, their manifest is.
    tags has what each tag pointed to last, also when it is gone."""

    registry: str
    manifests: dict[str, Manifest] = field(default_factory=dict)
    blobs: dict[str, int] = field(default_factory=dict)
    repositories: set[str] = field(default_factory=set)
    tags: dict[tuple[str, str], str] = field(default_factory=dict)
    pushed: dict[Thing, Window] = field(default_factory=dict)
    pulled: dict[Thing, Window] = field(default_factory=dict)
    deleted: dict[Thing, Window] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)


@dataclass
class Repository:
    """What should be in a repository now, by the answers that the registry gave."""

    tags: dict[str, str] = field(default_factory=dict)
    manifests: set[str] = field(default_factory=set)
    blobs: set[str] = field(default_factory=set)


def day(seed: int, registry: RealRegistry, operations: int = 70, aliases: tuple[str, ...] = ()) -> Ledger:
    """Does that many operations and returns what was done. Some of them call the registry by one of its aliases
    (host:port), as clients behind another name do."""
    return _Day(seed, registry, aliases).run(operations)


class _Day:
    def __init__(self, seed: int, registry: RealRegistry, aliases: tuple[str, ...]) -> None:
        self.random = random.Random(seed)
        self.registry = registry
        self.hosts = (registry.host, *aliases)
        self.ledger = Ledger(registry.host)
        self.repositories = {name: Repository() for name in REPOSITORIES}
        self.images = Images(self.random)
        self.scratch = registry.directory / f"day-{seed}"
        self.now = Window(_utc_now(), _utc_now())

    def run(self, operations: int) -> Ledger:
        weighted: list[tuple[Callable[[], str | None], int]] = [
            (self.push_image, 12),
            (self.push_by_digest, 5),
            (self.push_index, 8),
            (self.push_artifact, 5),
            (self.push_again, 5),
            (self.retag, 7),
            (self.copy, 7),
            (self.mount_blob, 3),
            (self.upload_blob, 2),
            (self.skopeo_push, 2),
            (self.skopeo_copy, 4),
            (self.pull_by_tag, 5),
            (self.pull_by_digest, 4),
            (self.head_manifest, 5),
            (self.pull_as_old_client, 3),
            (self.pull_unchanged, 2),
            (self.get_blob, 4),
            (self.head_blob, 3),
            (self.pull_missing, 1),
            (self.delete_manifest, 10),
            (self.delete_manifest_everywhere, 4),
            (self.delete_blob, 5),
            (self.delete_blob_everywhere, 4),
            (self.delete_tag, 1),
        ]
        choices = [operation for operation, weight in weighted for _ in range(weight)]
        # An operation that finds nothing to work on yet is none.
        while len(self.ledger.done) < operations:
            operation = self.random.choice(choices)
            what = operation()
            if what is not None:
                self.ledger.done.append(f"{operation.__name__} {what}")
        return self.ledger

    # Pushes

    def push_image(self) -> str:
        return self._push_somewhere(self.images.image(), self.random.choice(TAGS))

    def push_by_digest(self) -> str:
        return self._push_somewhere(self.images.image(), None)

    def push_artifact(self) -> str:
        return self._push_somewhere(
            self.images.artifact(sorted(self.ledger.manifests)), self.random.choice((None, *TAGS))
        )

    def push_index(self) -> str:
        children = [self.images.image() for _ in range(self.random.randrange(4))]
        known = [m for m in self._ever_pushed() if m.media_type in (SCHEMA_2, OCI_MANIFEST, OCI_INDEX)]
        if known and self.random.random() < 0.5:
            children.append(self.random.choice(known))
        return self._push_somewhere(self.images.index(children), self.random.choice((None, *TAGS)))

    def push_again(self) -> str | None:
        gone = [m for m in self._ever_pushed() if Thing("manifest", m.digest) in self.ledger.deleted]
        if not gone:
            return None
        return self._push_somewhere(self.random.choice(gone), self.random.choice((None, *TAGS)))

    def retag(self) -> str | None:
        """Only the manifest is sent, as when a tag is added to what is there: refused if a part of it is gone."""
        place = self._some_manifest()
        if place is None:
            return None
        repository, manifest = place
        tag = self.random.choice(TAGS)
        status = self._put_manifest(repository, manifest, tag)
        return f"{repository}:{tag} {_short(manifest.digest)} {status}"

    def copy(self) -> str | None:
        place = self._some_manifest()
        if place is None:
            return None
        _, manifest = place
        return self._push_somewhere(manifest, self.random.choice((None, *TAGS)))

    def mount_blob(self) -> str | None:
        place = self._some_blob()
        if place is None:
            return None
        source, digest = place
        target = self.random.choice(REPOSITORIES)
        return f"{digest} from {source} to {target}: {self._mount(target, digest, source)}"

    def upload_blob(self) -> str:
        repository, content = self.random.choice(REPOSITORIES), self.random.choice(self.images.layers)
        return f"{repository} {_short(self._upload(repository, content))}"

    # Pulls

    def pull_by_tag(self) -> str | None:
        return self._pull("GET", self._some_tag())

    def pull_by_digest(self) -> str | None:
        return self._pull("GET", self._some_digest())

    def head_manifest(self) -> str | None:
        return self._pull("HEAD", self.random.choice((self._some_tag, self._some_digest))())

    def pull_as_old_client(self) -> str | None:
        """Docker before 1.10 asks by tag and accepts nothing newer than schema 1.

        The registry converts schema 2 for it, and answers a manifest list with the image for linux/amd64. For an OCI
        manifest it answers 404, and yet it notifies of a pull.
        """
        place = self._some_tag()
        if place is None:
            return None
        repository, tag = place
        answer = self._request("GET", f"/v2/{repository}/manifests/{tag}")
        manifest = self.ledger.manifests[self.repositories[repository].tags[tag]]
        self._note_pull(repository, manifest.digest, tag)
        if manifest.media_type == MANIFEST_LIST:
            default = _default_child(manifest)
            if default in self.repositories[repository].manifests:
                self._note_pull(repository, default, None)
        return f"{repository}:{tag} {manifest.media_type} {answer.status}"

    def pull_unchanged(self) -> str | None:
        """A client that has the manifest already asks whether it is still the same one: no pull, and no event."""
        place = self._some_tag()
        if place is None:
            return None
        repository, tag = place
        digest = self.repositories[repository].tags[tag]
        answer = self._request(
            self.random.choice(("GET", "HEAD")),
            f"/v2/{repository}/manifests/{tag}",
            headers={"Accept": ACCEPT_ALL, "If-None-Match": f'"{digest}"'},
        )
        assert answer.status == 304, answer
        return f"{repository}:{tag}"

    def get_blob(self) -> str | None:
        place = self._some_blob()
        if place is None:
            return None
        repository, digest = place
        # A part of a blob, and a blob the client has, are pulls for the registry as well.
        extra: Mapping[str, str] = self.random.choice(({}, {"Range": "bytes=0-3"}, {"If-None-Match": f'"{digest}"'}))
        if digest == _digest(b""):
            extra = {}
        answer = self._request("GET", f"/v2/{repository}/blobs/{digest}", headers=extra)
        assert answer.status in (200, 206, 304), answer
        self._note(self.ledger.pulled, Thing("blob", digest))
        return f"{repository} {_short(digest)} {answer.status}"

    def head_blob(self) -> str | None:
        place = self._some_blob()
        if place is None:
            return None
        repository, digest = place
        assert self._has_blob(repository, digest)
        return f"{repository} {_short(digest)}"

    def pull_missing(self) -> str:
        repository = self.random.choice(REPOSITORIES)
        reference = self.random.choice(("no-such-tag", _digest(b"no such manifest")))
        answer = self._request("GET", f"/v2/{repository}/manifests/{reference}", headers={"Accept": ACCEPT_ALL})
        assert answer.status == 404, answer
        return f"{repository} {reference}"

    # Deletions

    def delete_manifest(self) -> str | None:
        place = self._some_manifest()
        if place is None:
            return None
        repository, manifest = place
        self._delete_manifest(repository, manifest.digest)
        return f"{repository} {_short(manifest.digest)}"

    def delete_manifest_everywhere(self) -> str | None:
        place = self._some_manifest()
        if place is None:
            return None
        _, manifest = place
        for repository, held in self.repositories.items():
            if manifest.digest in held.manifests:
                self._delete_manifest(repository, manifest.digest)
        return _short(manifest.digest)

    def delete_blob(self) -> str | None:
        place = self._some_blob()
        if place is None:
            return None
        repository, digest = place
        self._delete_blob(repository, digest)
        return f"{repository} {_short(digest)}"

    def delete_blob_everywhere(self) -> str | None:
        place = self._some_blob()
        if place is None:
            return None
        _, digest = place
        for repository, held in self.repositories.items():
            if digest in held.blobs:
                self._delete_blob(repository, digest)
        return _short(digest)

    def delete_tag(self) -> str | None:
        """Distribution 2.8 cannot delete a tag alone (400); it deletes those of a deleted manifest."""
        place = self._some_tag()
        if place is None:
            return None
        repository, tag = place
        answer = self._request("DELETE", f"/v2/{repository}/manifests/{tag}")
        assert answer.status == 400, answer
        return f"{repository}:{tag} refused"

    # With skopeo

    def skopeo_push(self) -> str:
        repository, tag = self.random.choice(REPOSITORIES), self.random.choice(TAGS)
        manifest = self.images.oci_image(self.images.some_layers())
        layout = self.scratch / f"layout-{len(self.ledger.done)}"
        self._write_layout(layout, manifest)
        self._skopeo(f"oci:{layout}:image", f"docker://{self.registry.host}/{repository}:{tag}")
        self._note_copied(repository, manifest, tag)
        return f"{repository}:{tag} {_short(manifest.digest)}"

    def skopeo_copy(self) -> str | None:
        tags = [
            (name, tag)
            for name, repository in self.repositories.items()
            for tag, digest in repository.tags.items()
            if self._is_whole(name, digest)
        ]
        if not tags:
            return None
        source, tag = self.random.choice(sorted(tags))
        target, new_tag = self.random.choice(REPOSITORIES), self.random.choice(TAGS)
        manifest = self.ledger.manifests[self.repositories[source].tags[tag]]
        host = self.registry.host
        self._skopeo(f"docker://{host}/{source}:{tag}", f"docker://{host}/{target}:{new_tag}")
        self._note_pull(source, manifest.digest, tag)
        for child in manifest.children():
            self._note_pull(source, child, None)
        for child in manifest.children():
            self._note_copied(target, self.ledger.manifests[child], None)
        self._note_copied(target, manifest, new_tag)
        return f"{source}:{tag} to {target}:{new_tag} {_short(manifest.digest)}"

    def _is_whole(self, repository: str, digest: str) -> bool:
        """An image or an index of images that is all there: skopeo copies it without a change."""
        held, manifest = self.repositories[repository], self.ledger.manifests[digest]
        if manifest.media_type in (OCI_INDEX, MANIFEST_LIST):
            children = manifest.children()
            return bool(children) and all(
                child in held.manifests
                and self.ledger.manifests[child].is_image()
                and held.blobs.issuperset(self.ledger.manifests[child].blobs())
                for child in children
            )
        return manifest.is_image() and held.blobs.issuperset(manifest.blobs())

    def _write_layout(self, layout: Path, manifest: Manifest) -> None:
        """An image layout, as the OCI image specification describes it (image-layout.md)."""
        blobs = layout / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        for content in (manifest.body, *(self.images.contents[digest] for digest in manifest.blobs())):
            (blobs / _digest(content).partition(":")[2]).write_bytes(content)
        (layout / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
        entry = {
            "mediaType": manifest.media_type,
            "digest": manifest.digest,
            "size": manifest.size,
            "annotations": {"org.opencontainers.image.ref.name": "image"},
        }
        (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))

    def _skopeo(self, source: str, target: str) -> None:
        home = self.scratch / "home"
        home.mkdir(parents=True, exist_ok=True)
        command = ["skopeo", "--insecure-policy", "copy", "--all", "--preserve-digests"]
        command += ["--src-tls-verify=false", "--dest-tls-verify=false", source, target]
        environment = {**os.environ, "HOME": str(home), "XDG_DATA_HOME": str(home)}
        with self._timed():
            ran = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        assert ran.returncode == 0, (command, ran.stderr)

    def _note_copied(self, repository: str, manifest: Manifest, tag: str | None) -> None:
        for digest in manifest.blobs():
            # Skopeo mounts what it knows of and uploads the rest; its cache of what it knows outlives the day.
            self._note_blob(repository, digest, pushed=False)
        self._note_manifest(repository, manifest, tag)

    # What the operations are made of

    def _push_somewhere(self, manifest: Manifest, tag: str | None) -> str:
        repository = self.random.choice(REPOSITORIES)
        self._push(repository, manifest, tag)
        return f"{repository}{':' + tag if tag else ''} {_short(manifest.digest)} {manifest.media_type}"

    def _push(self, repository: str, manifest: Manifest, tag: str | None) -> None:
        """As clients do: what is there is left, what another repository has is mounted, the rest is uploaded."""
        for reference in manifest.references:
            if reference.role in ("foreign", "subject"):
                continue  # need not be there
            if reference.digest in self.images.contents:
                self._push_blob(repository, reference.digest)
            elif reference.digest not in self.repositories[repository].manifests:
                self._push(repository, self.images.manifests[reference.digest], None)
        status = self._put_manifest(repository, manifest, tag)
        assert status == 201, (repository, tag, manifest)

    def _push_blob(self, repository: str, digest: str) -> None:
        if self._has_blob(repository, digest):
            return
        holders = [name for name in REPOSITORIES if digest in self.repositories[name].blobs]
        if holders and self.random.random() < 0.6:
            assert self._mount(repository, digest, self.random.choice(holders)) == 201
        else:
            self._upload(repository, self.images.contents[digest])

    def _has_blob(self, repository: str, digest: str) -> bool:
        answer = self._request("HEAD", f"/v2/{repository}/blobs/{digest}")
        assert (answer.status == 200) == (digest in self.repositories[repository].blobs), (repository, digest, answer)
        return answer.status == 200

    def _mount(self, repository: str, digest: str, source: str) -> int:
        query = urllib.parse.urlencode({"mount": digest, "from": source})
        status = self._request("POST", f"/v2/{repository}/blobs/uploads/?{query}").status
        if status == 201:
            self._note_blob(repository, digest, pushed=False)
        return status

    def _upload(self, repository: str, content: bytes) -> str:
        digest = _digest(content)
        answer = self._request("POST", f"/v2/{repository}/blobs/uploads/")
        assert answer.status == 202, answer
        if content and self.random.random() < 0.3:
            half = len(content) // 2
            answer = self._request("PATCH", _path(answer.headers["Location"]), content[:half])
            assert answer.status == 202, answer
            content = content[half:]
        location = f"{_path(answer.headers['Location'])}&{urllib.parse.urlencode({'digest': digest})}"
        answer = self._request("PUT", location, content, {"Content-Type": "application/octet-stream"})
        assert answer.status == 201, answer
        self._note_blob(repository, digest, pushed=True)
        return digest

    def _put_manifest(self, repository: str, manifest: Manifest, tag: str | None) -> int:
        path = f"/v2/{repository}/manifests/{tag or manifest.digest}"
        status = self._request("PUT", path, manifest.body, {"Content-Type": manifest.media_type}).status
        if status == 201:
            self._note_manifest(repository, manifest, tag)
        else:
            assert status == 400, (repository, manifest, status)
        return status

    def _pull(self, method: str, place: tuple[str, str] | None) -> str | None:
        if place is None:
            return None
        repository, reference = place
        answer = self._request(method, f"/v2/{repository}/manifests/{reference}", headers={"Accept": ACCEPT_ALL})
        assert answer.status == 200, (repository, reference, answer)
        held = self.repositories[repository]
        tag = reference if reference in held.tags else None
        digest = held.tags[tag] if tag else reference
        assert answer.headers["Docker-Content-Digest"] == digest
        self._note_pull(repository, digest, tag)
        return f"{method} {repository} {_short(reference)}"

    def _delete_manifest(self, repository: str, digest: str) -> None:
        """The registry deletes the tags that point to it as well, and notifies of each."""
        answer = self._request("DELETE", f"/v2/{repository}/manifests/{digest}")
        assert answer.status == 202, answer
        held = self.repositories[repository]
        held.manifests.discard(digest)
        self._note(self.ledger.deleted, Thing("manifest", digest))
        for tag in [tag for tag, target in held.tags.items() if target == digest]:
            del held.tags[tag]
            self._note(self.ledger.deleted, Thing("tag", f"{repository}:{tag}"))

    def _delete_blob(self, repository: str, digest: str) -> None:
        answer = self._request("DELETE", f"/v2/{repository}/blobs/{digest}")
        assert answer.status == 202, answer
        self.repositories[repository].blobs.discard(digest)
        self._note(self.ledger.deleted, Thing("blob", digest))

    def _request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        names = {"Host": self.random.choice(self.hosts), "User-Agent": self.random.choice(USER_AGENTS)}
        with self._timed():
            return self.registry.request(method, path, body, {**names, **(headers or {})})

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = _utc_now()
        yield
        self.now = Window(start, _utc_now())

    # What is kept of them

    def _note(self, times: dict[Thing, Window], thing: Thing) -> None:
        times[thing] = self.now

    def _note_blob(self, repository: str, digest: str, pushed: bool) -> None:
        self.ledger.repositories.add(repository)
        self.ledger.blobs[digest] = len(self.images.contents[digest])
        self.repositories[repository].blobs.add(digest)
        if pushed:
            self._note(self.ledger.pushed, Thing("blob", digest))

    def _note_manifest(self, repository: str, manifest: Manifest, tag: str | None) -> None:
        self.ledger.repositories.add(repository)
        self.ledger.manifests[manifest.digest] = manifest
        held = self.repositories[repository]
        held.manifests.add(manifest.digest)
        self._note(self.ledger.pushed, Thing("manifest", manifest.digest))
        if tag is not None:
            held.tags[tag] = manifest.digest
            self.ledger.tags[repository, tag] = manifest.digest
            self._note(self.ledger.pushed, Thing("tag", f"{repository}:{tag}"))

    def _note_pull(self, repository: str, digest: str, tag: str | None) -> None:
        self._note(self.ledger.pulled, Thing("manifest", digest))
        if tag is not None:
            self._note(self.ledger.pulled, Thing("tag", f"{repository}:{tag}"))

    # What to work on; in one order, so that the seed alone decides

    def _ever_pushed(self) -> list[Manifest]:
        return [self.ledger.manifests[digest] for digest in sorted(self.ledger.manifests)]

    def _some_tag(self) -> tuple[str, str] | None:
        return self._one_of({name: held.tags for name, held in self.repositories.items()})

    def _some_digest(self) -> tuple[str, str] | None:
        return self._one_of({name: held.manifests for name, held in self.repositories.items()})

    def _some_manifest(self) -> tuple[str, Manifest] | None:
        place = self._some_digest()
        return None if place is None else (place[0], self.ledger.manifests[place[1]])

    def _some_blob(self) -> tuple[str, str] | None:
        return self._one_of({name: held.blobs for name, held in self.repositories.items()})

    def _one_of(self, names: Mapping[str, set[str] | dict[str, str]]) -> tuple[str, str] | None:
        places = sorted((repository, name) for repository, here in names.items() for name in here)
        return self.random.choice(places) if places else None


class Images:
    """Makes manifests out of few layers and configs. contents: the bytes of each blob by its digest;
    manifests: each one made so far."""

    def __init__(self, random_: random.Random) -> None:
        self.random = random_
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.configs = [_config(architecture) for architecture in ("amd64", "arm64", "s390x")]
        self.layers = [_layer(number) for number in range(5)]
        self.odd = [b"", b"a signature", b'{"spdxVersion": "SPDX-2.3"}']
        self.contents = {_digest(content): content for content in (*self.configs, *self.layers, *self.odd, b"{}")}
        self.manifests: dict[str, Manifest] = {}

    def some_layers(self) -> list[bytes]:
        """One to three, now and then the same one twice."""
        return self.random.choices(self.layers, k=self.random.randint(1, 3))

    def image(self) -> Manifest:
        makers = (self.oci_image, self.oci_image, self.docker_image, self.docker_image, self.schema_1_image)
        return self.random.choice(makers)(self.some_layers())

    def oci_image(self, layers: list[bytes]) -> Manifest:
        config = _descriptor(OCI_CONFIG, self.random.choice(self.configs))
        described = [_descriptor(OCI_LAYER, layer) for layer in layers] + self._elsewhere(OCI_FOREIGN, OCI_LAYER)
        document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": described}
        if self.random.random() < 0.3:
            # The OCI image specification leaves the media type to the header.
            del document["mediaType"]
        return self._made(OCI_MANIFEST, document)

    def docker_image(self, layers: list[bytes]) -> Manifest:
        config = _descriptor(SCHEMA_2_CONFIG, self.random.choice(self.configs))
        described = [_descriptor(SCHEMA_2_LAYER, layer) for layer in layers]
        described += self._elsewhere(SCHEMA_2_FOREIGN, SCHEMA_2_FOREIGN)
        return self._made(SCHEMA_2, {"schemaVersion": 2, "mediaType": SCHEMA_2, "config": config, "layers": described})

    def schema_1_image(self, layers: list[bytes]) -> Manifest:
        """Docker image manifest version 2, schema 1: the digest is of what is signed."""
        ids = [f"{number:064x}" for number in range(len(layers) + 1)]
        history = [{"id": own, "parent": parent} for own, parent in zip(ids, ids[1:])]
        del history[-1]["parent"]
        document = {
            "schemaVersion": 1,
            "name": "legacy",
            "tag": "latest",
            "architecture": "amd64",
            "fsLayers": [{"blobSum": _digest(layer)} for layer in layers],
            "history": [{"v1Compatibility": json.dumps(entry)} for entry in history],
        }
        payload = json.dumps(document, indent=3).encode()
        references = tuple(Reference("layer", "", _digest(layer), None) for layer in layers)
        manifest = Manifest(_digest(payload), SCHEMA_1, signed(payload, self.key), len(payload), references)
        return self.manifests.setdefault(manifest.digest, manifest)

    def artifact(self, subjects: list[str]) -> Manifest:
        """Something that is no image: in its config, its layers or both. It may be attached to a manifest that is
        there, that is gone, or that never was."""
        config, layer_type = self.random.choice(
            (
                (_descriptor(OCI_EMPTY, b"{}"), "application/spdx+json"),
                (_descriptor("application/vnd.cncf.helm.config.v1+json", self.odd[2]), OCI_LAYER),
                (_descriptor(OCI_CONFIG, self.configs[0]), "application/vnd.dev.cosign.simplesigning.v1+json"),
            )
        )
        layers = self.random.sample(self.odd, self.random.randrange(1, 3)) + self.random.sample(self.layers, 1)
        document: dict[str, object] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config,
            "layers": [_descriptor(layer_type, layer) for layer in layers],
        }
        if self.random.random() < 0.7:
            digest = self.random.choice([*subjects, _digest(b"never pushed")])
            size = self.manifests[digest].size if digest in self.manifests else 12
            media_type = self.manifests[digest].media_type if digest in self.manifests else OCI_MANIFEST
            document["subject"] = {"mediaType": media_type, "digest": digest, "size": size}
            document["artifactType"] = "application/spdx+json"
        return self._made(OCI_MANIFEST, document)

    def index(self, children: list[Manifest]) -> Manifest:
        """An OCI index or a Docker manifest list, and seldom a build cache: an index whose entries are layers."""
        media_type = self.random.choice((OCI_INDEX, OCI_INDEX, MANIFEST_LIST))
        architectures = ("amd64", "arm64", "s390x", "ppc64le")
        entries: list[dict[str, object]] = [
            {
                "mediaType": child.media_type,
                "digest": child.digest,
                "size": child.size,
                "platform": {"architecture": architectures[number % 4], "os": "linux"},
            }
            for number, child in enumerate(children)
        ]
        if media_type == OCI_INDEX and self.random.random() < 0.15:
            entries.append(_descriptor(OCI_LAYER, self.random.choice(self.layers)))
        return self._made(media_type, {"schemaVersion": 2, "mediaType": media_type, "manifests": entries})

    def _elsewhere(self, *media_types: str) -> list[dict[str, object]]:
        """Seldom, a layer that is never uploaded, because it is to be had by its URL."""
        if self.random.random() > 0.2:
            return []
        number = self.random.randrange(2)
        descriptor = _descriptor(self.random.choice(media_types), f"a layer of somebody else's, {number}".encode())
        return [{**descriptor, "urls": [f"https://layers.example/{number}"]}]

    def _made(self, media_type: str, document: Mapping[str, object]) -> Manifest:
        body = json.dumps(document, indent=2).encode()
        manifest = Manifest(_digest(body), media_type, body, len(body), tuple(_references(document)))
        return self.manifests.setdefault(manifest.digest, manifest)


def signed(payload: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The payload with one signature in it, in the pretty JWS form of schema 1: the signatures are a last member of
    the JSON object, and their protected header says how to get the signed bytes back (libtrust, jsonsign.go)."""
    assert payload.endswith(b"\n}")
    cut = len(payload) - len(b"\n}")
    head = {"formatLength": cut, "formatTail": _base64url(payload[cut:]), "time": "2020-01-01T00:00:00Z"}
    protected = _base64url(json.dumps(head).encode())
    signature = key.sign(f"{protected}.{_base64url(payload)}".encode(), ec.ECDSA(hashes.SHA256()))
    both = b"".join(number.to_bytes(32, "big") for number in decode_dss_signature(signature))
    public = key.public_key()
    numbers = public.public_numbers()
    jwk = {
        "crv": "P-256",
        "kid": _key_id(public),
        "kty": "EC",
        "x": _base64url(numbers.x.to_bytes(32, "big")),
        "y": _base64url(numbers.y.to_bytes(32, "big")),
    }
    entry = {"header": {"jwk": jwk, "alg": "ES256"}, "signature": _base64url(both), "protected": protected}
    return payload[:cut] + b',\n   "signatures": ' + json.dumps([entry]).encode() + payload[cut:]


def _key_id(public: ec.EllipticCurvePublicKey) -> str:
    """240 bits of the hash of the key, in groups of four base 32 digits (libtrust, util.go)."""
    encoded = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digits = base64.b32encode(hashlib.sha256(encoded).digest()[:30]).decode()
    return ":".join(digits[start : start + 4] for start in range(0, len(digits), 4))


def _references(document: Mapping[str, object]) -> Iterator[Reference]:
    members = (("config", "config"), ("layer", "layers"), ("child", "manifests"), ("subject", "subject"))
    for role, member in members:
        described = document.get(member, [])
        for descriptor in described if isinstance(described, list) else [described]:
            own_role = "foreign" if "urls" in descriptor else role
            yield Reference(own_role, descriptor["mediaType"], descriptor["digest"], descriptor["size"])


def _default_child(manifest: Manifest) -> str | None:
    for entry in json.loads(manifest.body)["manifests"]:
        if entry["platform"] == {"architecture": "amd64", "os": "linux"}:
            return str(entry["digest"])
    return None


def _config(architecture: str) -> bytes:
    document = {
        "architecture": architecture,
        "os": "linux",
        "created": "2020-01-01T00:00:00Z",
        "rootfs": {"type": "layers", "diff_ids": [_digest(b"")]},
        "history": [{"created_by": "a test"}],
    }
    return json.dumps(document).encode()


def _layer(number: int) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        content = f"layer {number}\n".encode() * (number + 1)
        entry = tarfile.TarInfo(f"file-{number}")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(archive.getvalue(), mtime=0)


def _descriptor(media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(content), "size": len(content)}


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _short(reference: str) -> str:
    return reference[:19] if reference.startswith("sha256:") else reference


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _path(location: str) -> str:
    """A location without the host, which a client under another name would not reach."""
    split = urllib.parse.urlsplit(location)
    return f"{split.path}?{split.query}" if split.query else split.path


def _utc_now() -> datetime:
    return datetime.now(timezone.utc).replace(tzinfo=None)
