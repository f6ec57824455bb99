"""What registries send, made up: bodies like those that Docker distribution posts, about objects that never were."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

HOST = "registry.example.org:5000"
MIXES = ("pushes", "mixed")
# How many blobs a registry had before, and in how many repositories they are, where a mix speaks of what is known.
KNOWN_REPOSITORIES = 1000
_IMAGES = 200
_LAYERS = 3
_STEP = timedelta(microseconds=20)
_IMAGE_TYPE = "application/vnd.oci.image.manifest.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
_BLOB_TYPE = "application/octet-stream"


class Notification(NamedTuple):
    """One event: its id and its JSON, indented as in a registry's envelope."""

    id: str
    text: str


def envelope(events: Iterable[Notification]) -> bytes:
    """The body of a request that brings these events."""
    inner = ",\n      ".join(event.text for event in events)
    return f'{{\n   "events": [\n      {inner}\n   ]\n}}'.encode()


def envelopes(events: Iterable[Notification], size: int) -> Iterator[tuple[list[str], bytes]]:
    """The bodies that bring these events, `size` in each, with the ids of what they bring."""
    events = iter(events)
    while True:
        some = list(itertools.islice(events, size))
        if not some:
            return
        yield [event.id for event in some], envelope(some)


def known_digest(number: int) -> str:
    """The digest of the known blob of this number."""
    return "sha256:" + hashlib.sha256(str(number).encode()).hexdigest()


def known_repository(number: int) -> str:
    """The repository that holds it."""
    return f"known/app{number % KNOWN_REPOSITORIES}"


class Registry:
    """A registry that never was. The same seed and time make the same notifications; other seeds make other ones."""

    def __init__(self, seed: int, utc: datetime) -> None:
        self._random = random.Random(seed)
        self._utc = utc

    def notifications(self, mix: str) -> Iterator[Notification]:
        """Notifications without end of one of MIXES."""
        return self.pushes() if mix == "pushes" else self.mixed()

    def pushes(self) -> Iterator[Notification]:
        """Pushes of new blobs to a hundred repositories."""
        while True:
            yield self._blob("push", "PUT", f"team{self._random.randrange(10)}/app{self._random.randrange(10)}")

    def pulls_of_known(self, count: int) -> Iterator[Notification]:
        """Pulls of `count` known blobs, each as likely as the others."""
        while True:
            number = self._random.randrange(count)
            yield self._blob("pull", "GET", known_repository(number), known_digest(number))

    def known_images(self) -> Iterator[Notification]:
        """The pushes that `mixed` takes for granted."""
        for image in range(_IMAGES):
            config, *layers = _parts(image)
            for digest in (*layers, config):
                yield self._blob("push", "PUT", _home(image), digest)
            yield self._manifest("push", "PUT", _home(image), _digest(f"image {image}"), "v1", config, layers)

    def mixed(self) -> Iterator[Notification]:
        """Of ten, one is a new blob, one a new manifest with its references, one a deletion of something that was
        pushed before, and seven are pulls of the known images and their layers, by tag, by digest and by HEAD."""
        pushed: deque[tuple[str, str]] = deque()
        while True:
            image = self._random.randrange(_IMAGES)
            home = _home(image)
            layers = _parts(image)[1:]
            blob = self._new_digest()
            manifest = self._new_digest()
            yield self._blob("push", "PUT", home, blob)
            yield self._pull_of_layer()
            yield self._pull_of_image("GET", "v1")
            yield self._manifest("push", "PUT", home, manifest, f"v{self._random.randrange(1000)}", blob, layers)
            yield self._pull_of_layer()
            yield self._pull_of_image("HEAD", "")
            pushed.append((home, manifest if self._random.getrandbits(1) else blob))
            yield self._deletion(*pushed.popleft()) if len(pushed) > 20 else self._pull_of_layer()
            yield self._pull_of_layer()
            yield self._pull_of_image("GET", "v1")
            yield self._pull_of_image("GET", "")

    def _pull_of_layer(self) -> Notification:
        image = self._random.randrange(_IMAGES)
        return self._blob("pull", "GET", _home(image), _parts(image)[1 + self._random.randrange(_LAYERS)])

    def _pull_of_image(self, method: str, tag: str) -> Notification:
        image = self._random.randrange(_IMAGES)
        config, *layers = _parts(image)
        return self._manifest("pull", method, _home(image), _digest(f"image {image}"), tag, config, layers)

    def _blob(self, action: str, method: str, repository: str, digest: str = "") -> Notification:
        digest = digest or self._new_digest()
        size = self._random.randrange(1, 100_000_000)
        return self._event(
            action,
            method,
            f"""\
            "mediaType": "{_BLOB_TYPE}",
            "size": {size},
            "digest": "{digest}",
            "length": {size},
            "repository": "{repository}",
            "url": "http://{HOST}/v2/{repository}/blobs/{digest}\"""",
        )

    def _manifest(
        self, action: str, method: str, repository: str, digest: str, tag: str, config: str, layers: Sequence[str]
    ) -> Notification:
        references = ",\n".join(
            f"""\
               {{
                  "mediaType": "{media_type}",
                  "size": {size},
                  "digest": "{reference}"
               }}"""
            for media_type, size, reference in (
                (_CONFIG_TYPE, 1470, config),
                *((_LAYER_TYPE, 3_000_000 + number, layer) for number, layer in enumerate(layers)),
            )
        )
        tag_line = f'            "tag": "{tag}",\n' if tag else ""
        return self._event(
            action,
            method,
            f"""\
            "mediaType": "{_IMAGE_TYPE}",
            "size": 735,
            "digest": "{digest}",
            "length": 735,
            "repository": "{repository}",
            "url": "http://{HOST}/v2/{repository}/manifests/{digest}",
{tag_line}            "references": [
{references}
            ]""",
        )

    def _deletion(self, repository: str, digest: str) -> Notification:
        return self._event(
            "delete",
            "DELETE",
            f"""\
            "digest": "{digest}",
            "repository": "{repository}\"""",
        )

    def _event(self, action: str, method: str, target: str) -> Notification:
        identity = self._new_id()
        self._utc += _STEP
        return Notification(
            identity,
            f"""\
{{
         "id": "{identity}",
         "timestamp": "{self._utc.isoformat(timespec="microseconds")}321Z",
         "action": "{action}",
         "target": {{
{target}
         }},
         "request": {{
            "id": "{self._new_id()}",
            "addr": "192.0.2.7:{32768 + self._random.randrange(28000)}",
            "host": "{HOST}",
            "method": "{method}",
            "useragent": "docker/24.0.7 go/go1.20.10 git-commit/311b9ff kernel/6.1.0 os/linux arch/amd64"
         }},
         "actor": {{}},
         "source": {{
            "addr": "registry-7c5ddbdf54-26fq2:5000",
            "instanceID": "2dad1037-12d8-4d6a-8c90-7c1afd0dd322"
         }}
      }}""",
        )

    def _new_digest(self) -> str:
        return f"sha256:{self._random.getrandbits(256):064x}"

    def _new_id(self) -> str:
        text = f"{self._random.getrandbits(128):032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _digest(name: str) -> str:
    return "sha256:" + hashlib.sha256(name.encode()).hexdigest()


def _home(image: int) -> str:
    return f"team{image % 10}/app{image // 10}"


def _parts(image: int) -> list[str]:
    """The config and the layers of a known image; those of ten images share all layers but the last."""
    base = image // 10
    return [
        _digest(f"config {image}"),
        *(_digest(f"layer {base} {number}") for number in range(_LAYERS - 1)),
        _digest(f"own layer {image}"),
    ]
