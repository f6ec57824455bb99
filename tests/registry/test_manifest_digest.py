"""A body is what its digest names, or it is refused."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from registry_servers import digest_of, signed_schema_1

from regstat_lib.registry.digest import is_verifiable, verified_content

PAYLOAD = b'{\n   "schemaVersion": 1,\n   "name": "team/app",\n   "fsLayers": []\n}'


@given(st.binary(), st.sampled_from(["sha256", "sha384", "sha512"]))
def test_a_body_is_verified_by_each_algorithm(body: bytes, algorithm: str) -> None:
    digest = f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"
    assert is_verifiable(digest)
    assert verified_content(body, digest) == body
    assert verified_content(body + b" ", digest) is None


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "sha256",
        "sha256:",
        "sha256:abc",
        "md5:" + "0" * 32,
        "sha256:" + "0" * 65,
        "sha256:" + "A" * 64,
        "sha512:" + "0" * 64,
        "sha256:" + "0" * 64 + "\n",
    ],
)
def test_what_cannot_be_verified_is_said_to_be_so(digest: str) -> None:
    assert not is_verifiable(digest)


def test_the_digest_of_a_signed_manifest_is_over_its_payload() -> None:
    assert verified_content(signed_schema_1(PAYLOAD), digest_of(PAYLOAD)) == PAYLOAD


def test_what_is_slipped_in_beside_a_signature_is_not_returned() -> None:
    body = signed_schema_1(PAYLOAD).replace(b',\n   "signatures"', b',\n   "fsLayers": ["evil"],\n   "signatures"')
    assert json.loads(body)["fsLayers"] == ["evil"]
    content = verified_content(body, digest_of(PAYLOAD))
    assert content == PAYLOAD


def test_a_signed_manifest_with_another_payload_is_refused() -> None:
    assert verified_content(signed_schema_1(PAYLOAD), digest_of(PAYLOAD + b" ")) is None


json_values = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(
    st.one_of(
        json_values,
        st.fixed_dictionaries({"protected": json_values}),
        st.lists(st.fixed_dictionaries({"protected": json_values})),
    )
)
def test_no_signature_makes_the_check_fail(signatures: object) -> None:
    body = json.dumps({"signatures": signatures}).encode()
    assert verified_content(body, digest_of(b"other")) is None


@given(st.fixed_dictionaries({"formatLength": json_values, "formatTail": json_values}))
def test_no_protected_header_makes_the_check_fail(header: object) -> None:
    protected = base64.urlsafe_b64encode(json.dumps(header).encode()).decode()
    body = json.dumps({"signatures": [{"protected": protected}]}).encode()
    assert verified_content(body, digest_of(b"other")) is None
