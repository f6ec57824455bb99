"""Is this body what the digest names? Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re

# The registered algorithms of the OCI image specification ("Descriptors"), and sha384, which distribution knows too.
_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_DIGEST = re.compile(r"(sha256|sha384|sha512):([0-9a-f]+)")


def is_verifiable(digest: str) -> bool:
    """Whether the digest is well-formed and of an algorithm that can be checked here."""
    match = _DIGEST.fullmatch(digest)
    return match is not None and len(match.group(2)) == _LENGTHS[match.group(1)]


def verified_content(body: bytes, digest: str) -> bytes | None:
    """The bytes of ``body`` that ``digest`` is computed over, None when it is not the digest of this body.

    That is the whole body, except of a schema 1 manifest with its signatures: there it is the payload that
    was signed. Only that is returned, because nothing vouches for what stands between it and the signatures.
    """
    algorithm, _, expected = digest.partition(":")
    for content in (body, _signed_payload(body)):
        if content is not None and hashlib.new(algorithm, content).hexdigest() == expected:
            return content
    return None


def _signed_payload(body: bytes) -> bytes | None:
    """What was signed in a "pretty" JSON web signature, as docker/libtrust's ``ParsePrettySignature`` finds it.

    Each signature's protected header says how many bytes of the body to keep and which bytes to put after them.
    """
    if b'"signatures"' not in body:
        return None
    try:
        protected = json.loads(body)["signatures"][0]["protected"]
        header = json.loads(_base64url(protected))
        length, tail = header["formatLength"], _base64url(header["formatTail"])
        if type(length) is not int or not 0 <= length <= len(body):
            return None
        return body[:length] + tail
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, binascii.Error):
        return None


def _base64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
