"""Fields behind their lengths: the bytes, and that no two lists of fields share them."""

from __future__ import annotations

import hashlib
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.binding import Binding, Role
from attestation.length_prefixed import pack
from fedlearn.job.spec import workload_digest

FIELDS = st.lists(st.binary(max_size=8), max_size=6)


def test_a_field_stands_behind_its_length() -> None:
    assert pack() == b""
    assert pack(b"") == bytes(4)
    assert pack(b"ab", b"", b"c") == b"\0\0\0\2ab" + bytes(4) + b"\0\0\0\1c"


@given(FIELDS, FIELDS)
def test_other_fields_give_other_bytes(one: list[bytes], two: list[bytes]) -> None:
    assert (pack(*one) == pack(*two)) == (one == two)


def test_a_length_that_does_not_fit_is_refused() -> None:
    class Long(bytes):
        def __len__(self) -> int:
            return min(2**32, sys.maxsize)

    with pytest.raises(OverflowError):
        pack(Long())


def test_formats_that_are_hashed_keep_their_bytes() -> None:
    job, bundle = bytes(32), bytes(range(32))
    length = struct.pack(">I", 32)
    workload = b"fedlearn-workload/1\0" + length + job + length + bundle
    assert workload_digest(job, bundle) == hashlib.sha256(workload).digest()
    binding = Binding(
        role=Role.SITE,
        nonce=job,
        verifier_id=b"v",
        tls_key=b"tls",
        hpke_key=b"",
        node_id="st-anna",
        workload=bundle,
    )
    parts = (
        *(b"site", job, b"v", hashlib.sha256(b"tls").digest(), hashlib.sha256(b"").digest()),
        *(b"st-anna", bundle),
    )
    body = b"".join(struct.pack(">I", len(part)) + part for part in parts)
    assert binding.report_data() == hashlib.sha512(b"fedlearn-ra/1\0" + body).digest()
