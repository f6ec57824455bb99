"""The registry client: reads manifests from any registry that its operator can pull from with ``docker login``.

``RegistryClient.fetch_manifest`` is the way in. Below it, each in a module of its own: where to ask (``address``),
with which credentials (``keychain``, ``docker_config``, ``credential_helper``), how to answer a challenge
(``challenge``, ``auth_flow``), what was granted (``grants``), whom to trust (``trust``), and one request with its
whole answer in bounded time and size (``transport``). Only ``transport``, ``keychain``, ``credential_helper`` and
``trust`` touch anything outside the process.
"""

from __future__ import annotations

from regstat_lib.registry.client import CERTS_DIR, RegistryClient
from regstat_lib.registry.keychain import ANONYMOUS, Keychain, KeychainError
from regstat_lib.registry.manifest_source import FetchedManifest, ManifestSource
from regstat_lib.registry.trouble import FetchError, Trouble

__all__ = [
    "ANONYMOUS",
    "CERTS_DIR",
    "FetchError",
    "FetchedManifest",
    "Keychain",
    "KeychainError",
    "ManifestSource",
    "RegistryClient",
    "Trouble",
]
