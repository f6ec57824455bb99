"""Servers for the registry client's tests: scripted ones, a token server, an authority, the real registry."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import http.server
import ipaddress
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
SIGNED_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"


class Asked(NamedTuple):
    method: str
    path: str
    headers: Mapping[str, str]  # lower-case names
    body: bytes
    at: float

    @property
    def authorization(self) -> str | None:
        return self.headers.get("authorization")

    @property
    def query(self) -> dict[str, list[str]]:
        return urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)


class Answer(NamedTuple):
    status: int = 200
    headers: Mapping[str, str] = {}
    body: bytes = b""


class Scripted:
    """An HTTP server whose answers a function decides; it remembers what it was asked."""

    def __init__(self, answer: Callable[[Asked], Answer], context: ssl.SSLContext | None = None) -> None:
        self.asked: list[Asked] = []
        self.answer = answer
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = Asked(self.command, self.path, headers, body, time.monotonic())
                outer.asked.append(asked)
                answer = outer.answer(asked)
                self.send_response(answer.status)
                headers = {"Content-Length": str(len(answer.body)), **answer.headers}
                for name, value in headers.items():
                    for line in value.split("\n"):
                        self.send_header(name, line)
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(answer.body)

            do_GET = do_POST = do_HEAD = handle_any

            def log_message(self, *_: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: object) -> None:
                pass

            def finish_request(self, request: Any, client_address: Any) -> None:
                if context is not None:
                    request = context.wrap_socket(request, server_side=True)
                super().finish_request(request, client_address)
                with contextlib.suppress(OSError):
                    request.close()

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"{'https' if context else 'http'}://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Raw:
    """A server that gives every connection to a function, one thread each, until it is closed."""

    def __init__(
        self, talk: Callable[[socket.socket, threading.Event], None], context: ssl.SSLContext | None = None
    ) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.closing = threading.Event()
        self.connections = 0
        self._talk = talk
        self._context = context
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            connection.settimeout(20)
            self._talk(connection, self.closing)

    def close(self) -> None:
        self.closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def digest_of(body: bytes) -> str:
    return "sha256:" + hashlib.sha256(body).hexdigest()


def index_manifest(number: int | str = 0) -> bytes:
    """A manifest that references nothing, so a registry takes it as it is."""
    return json.dumps(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "annotations": {"number": str(number)}}
    ).encode()


def manifest_answer(body: bytes, media_type: str = OCI_INDEX) -> Answer:
    return Answer(200, {"Content-Type": media_type, "Docker-Distribution-Api-Version": "registry/2.0"}, body)


def error_answer(status: int, code: str = "UNKNOWN", headers: Mapping[str, str] | None = None) -> Answer:
    """An error as a registry words it."""
    body = json.dumps({"errors": [{"code": code, "message": code.lower()}]}).encode()
    return Answer(status, {"Content-Type": "application/json", **(headers or {})}, body)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def libtrust_key_id(public_key: Any) -> str:
    """The fingerprint that docker/libtrust names keys by."""
    der = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    text = base64.b32encode(hashlib.sha256(der).digest()[:30]).decode()
    return ":".join(text[at : at + 4] for at in range(0, len(text), 4))


def signed_schema_1(payload: bytes) -> bytes:
    """A schema 1 manifest with its signature inside, as libtrust's ``PrettySignature`` writes it."""
    assert payload.endswith(b"\n}")
    key = ec.generate_private_key(ec.SECP256R1())
    numbers = key.public_key().public_numbers()
    jwk = {
        "crv": "P-256",
        "kid": libtrust_key_id(key.public_key()),
        "kty": "EC",
        "x": _base64url(numbers.x.to_bytes(32, "big")),
        "y": _base64url(numbers.y.to_bytes(32, "big")),
    }
    kept = len(payload) - 2
    header = {"formatLength": kept, "formatTail": _base64url(b"\n}"), "time": "2020-01-01T00:00:00Z"}
    protected = _base64url(json.dumps(header).encode())
    r, s = decode_dss_signature(key.sign(f"{protected}.{_base64url(payload)}".encode(), ec.ECDSA(hashes.SHA256())))
    signature = {
        "header": {"jwk": jwk, "alg": "ES256"},
        "signature": _base64url(r.to_bytes(32, "big") + s.to_bytes(32, "big")),
        "protected": protected,
    }
    return payload[:kept] + b',\n   "signatures": [' + json.dumps(signature).encode() + b"]\n}"


class Authority:
    """A certificate authority made for one test run."""

    def __init__(self, modern: bool = True) -> None:
        """Without ``modern`` its certificates lack what only newer verifiers ask for."""
        self._modern = modern
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "regstat test authority")])
        self.certificate = self._sign(self._name, self._key.public_key(), authority=True)

    def _sign(
        self, subject: x509.Name, public_key: Any, authority: bool, names: tuple[str, ...] = ()
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
        )
        if self._modern:
            issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
            builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            builder = builder.add_extension(issuer, critical=False)
        if authority and self._modern:
            usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
            builder = builder.add_extension(usage, critical=True)
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general_name(n) for n in names]), critical=False
            )
        return builder.sign(self._key, hashes.SHA256())

    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, directory: Path, stem: str, names: tuple[str, ...]) -> tuple[Path, Path]:
        """A certificate and its key, in ``stem.cert`` and ``stem.key``."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        certificate = self._sign(subject, key.public_key(), authority=False, names=names)
        directory.mkdir(parents=True, exist_ok=True)
        cert_file, key_file = directory / f"{stem}.cert", directory / f"{stem}.key"
        cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return cert_file, key_file

    def server_context(self, directory: Path, names: tuple[str, ...] = ("localhost", "127.0.0.1")) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue(directory, f"server-{len(list(directory.glob('*')))}", names))
        return context


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class TokenIssuer:
    """A token server's mind: answers as the token specification says and signs what docker-registry believes."""

    issuer = "regstat-tests"
    service = "registry.tests"

    def __init__(self, directory: Path) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.users = {"reader": "first-password"}
        self.refresh_tokens: set[str] = set()
        self.anonymous_reads = False
        self.life = 300  # what a token says of itself
        self.expires_in: object = 300  # what the answer says of the token
        self.issued = 0
        self.bundle = directory / "token-issuer.pem"
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.issuer)])
        now = datetime.datetime.now(datetime.timezone.utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .sign(self._key, hashes.SHA256())
        )
        self.bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def __call__(self, asked: Asked) -> Answer:
        form = urllib.parse.parse_qs(asked.body.decode()) if asked.method == "POST" else asked.query
        user = self._user(asked, form)
        if user is None and not self.anonymous_reads:
            return Answer(401, {}, b'{"details": "incorrect username or password"}')
        if form.get("service") != [self.service]:
            return Answer(400)
        access: list[dict[str, object]] = []
        for scope in form.get("scope", []):
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": [a for a in actions.split(",") if a == "pull"]})
        self.issued += 1
        token = self.sign(user or "", access)
        answer: dict[str, object] = {"access_token" if asked.method == "POST" else "token": token}
        if self.expires_in is not None:
            answer["expires_in"] = self.expires_in
        return Answer(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def sign(self, user: str, access: list[dict[str, object]]) -> str:
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "sub": user,
            "aud": self.service,
            "exp": now + self.life,
            "nbf": now - 600,
            "iat": now - 600,
            "jti": f"token-{self.issued}",
            "access": access,
        }
        return jwt.encode(claims, self._key, "RS256", {"kid": libtrust_key_id(self._key.public_key())})

    def _user(self, asked: Asked, form: Mapping[str, list[str]]) -> str | None:
        if asked.method == "POST":
            granted = form.get("grant_type") == ["refresh_token"] and form["refresh_token"][0] in self.refresh_tokens
            return "refreshed" if granted else None
        if asked.authorization is None:
            return None
        user, _, password = base64.b64decode(asked.authorization.partition(" ")[2]).decode().partition(":")
        return user if self.users.get(user) == password else None


DOCKER_REGISTRY = shutil.which("docker-registry")


class DockerRegistry:
    """The real thing, on a port of its own."""

    def __init__(
        self, directory: Path, storage: Path, auth: object = None, tls: tuple[Path, Path] | None = None
    ) -> None:
        assert DOCKER_REGISTRY is not None
        directory.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": str(storage)}, "delete": {"enabled": True}},
            "http": {"addr": "127.0.0.1:0"},
            "compatibility": {"schema1": {"enabled": True}},
        }
        if auth is not None:
            config["auth"] = auth
        if tls is not None:
            config["http"]["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
        file = directory / "config.yml"
        file.write_text(json.dumps(config))  # JSON is YAML
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen([DOCKER_REGISTRY, "serve", str(file)], stdout=log, stderr=log)
        port = self._port()
        self.host = f"127.0.0.1:{port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"

    def _port(self) -> str:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            listening = re.search(r"listening on 127\.0\.0\.1:(\d+)", self.log.read_text())
            if listening:
                return listening.group(1)
            assert self._process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        raise AssertionError(f"docker-registry did not start: {self.log.read_text()}")

    def push_manifest(self, repository: str, body: bytes, media_type: str = OCI_INDEX, tag: str = "") -> str:
        """Put a manifest and return the digest that the registry gives it."""
        reference = tag or digest_of(body)
        url = f"{self.url}/v2/{repository}/manifests/{reference}"
        request = urllib.request.Request(url, body, {"Content-Type": media_type}, method="PUT")
        with urllib.request.urlopen(request, timeout=20) as response:
            return str(response.headers["Docker-Content-Digest"])

    def push_blob(self, repository: str, content: bytes) -> str:
        request = urllib.request.Request(f"{self.url}/v2/{repository}/blobs/uploads/", b"", method="POST")
        with urllib.request.urlopen(request, timeout=20) as response:
            upload = response.headers["Location"]
        url = f"{upload}&digest={urllib.parse.quote(digest_of(content))}"
        headers = {"Content-Type": "application/octet-stream"}
        with urllib.request.urlopen(urllib.request.Request(url, content, headers, method="PUT"), timeout=20):
            return digest_of(content)

    def status(self, path: str, authorization: str = "") -> int:
        headers = {"Authorization": authorization} if authorization else {}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.url + path, headers=headers), timeout=20
            ) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
