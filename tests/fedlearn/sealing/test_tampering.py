"""Every altered byte, moved chunk and foreign spelling is found, and the reason is reported."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import UnsealError
from fedlearn.sealing import (
    Header,
    PrivateKey,
    RandomKey,
    Tensor,
    open_sealed,
    read_header,
    seal,
)
from fedlearn.sealing.header import MAX_HEADER_BYTES

CHUNK = 4096
SLOT = CHUNK + 16
OWNER = X25519PrivateKey.generate()


def make(path: Path, *, version: int = 1) -> bytearray:
    seal(
        path,
        [
            Tensor(name="a", dtype="U8", shape=(3 * CHUNK,), data=os.urandom(3 * CHUNK)),
            Tensor(name="b", dtype="F32", shape=(10,), data=os.urandom(40)),
        ],
        model="demo",
        version=version,
        round=2,
        key=RandomKey(),
        recipients=[OWNER.public_key().public_bytes_raw()],
        meta={"job": "demo"},
        chunk=CHUNK,
    )
    return bytearray(path.read_bytes())


def body(raw: bytes | bytearray) -> int:
    (header,) = struct.unpack_from(">I", raw, 5)
    return 9 + int(header) + 32


def refused(path: Path, raw: bytes | bytearray, reason: str = ".") -> None:
    path.write_bytes(raw)
    with pytest.raises(UnsealError, match=reason):
        with open_sealed(path, PrivateKey(OWNER)) as reader:
            reader.verify()


def with_header(raw: bytes | bytearray, header: bytes) -> bytes:
    return bytes(raw[:5]) + struct.pack(">I", len(header)) + header + bytes(raw[body(raw) - 32 :])


def edited(raw: bytes | bytearray, change: Callable[[dict[str, Any]], None]) -> bytes:
    document = json.loads(raw[9 : body(raw) - 32])
    change(document)
    return with_header(raw, json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def test_every_byte_of_the_header_counts(tmp_path: Path) -> None:
    raw = make(tmp_path / "m")
    for position in range(body(raw)):
        for bit in (1, 0x20, 0x80):
            changed = bytearray(raw)
            changed[position] ^= bit
            refused(tmp_path / "m", changed)


def test_bytes_of_chunks_count(tmp_path: Path) -> None:
    raw = make(tmp_path / "m")
    start = body(raw)
    for index, position in enumerate((start, start + SLOT + 7, start + 3 * SLOT - 1, len(raw) - 1)):
        changed = bytearray(raw)
        changed[position] ^= 1
        name, chunk = (("a", 0), ("a", 1), ("a", 2), ("b", 3))[index]
        refused(tmp_path / "m", changed, f"tensor '{name}', chunk {chunk} of the file")


def test_moved_chunks_are_found(tmp_path: Path) -> None:
    raw = make(tmp_path / "m")
    start = body(raw)
    swapped = bytearray(raw)
    swapped[start : start + SLOT] = raw[start + SLOT : start + 2 * SLOT]
    swapped[start + SLOT : start + 2 * SLOT] = raw[start : start + SLOT]
    refused(tmp_path / "m", swapped, "chunk 0 of the file: was altered, or comes from another")
    repeated = bytearray(raw)
    repeated[start + SLOT : start + 2 * SLOT] = raw[start : start + SLOT]
    refused(tmp_path / "m", repeated, "chunk 1 of the file")


def test_a_chunk_of_another_file_is_found(tmp_path: Path) -> None:
    raw, other = make(tmp_path / "m"), make(tmp_path / "n")
    start = body(raw)
    assert body(other) == start
    raw[start : start + SLOT] = other[start : start + SLOT]
    refused(tmp_path / "m", raw, "chunk 0 of the file")
    refused(tmp_path / "m", bytes(other[:start]) + bytes(make(tmp_path / "m")[start:]), "chunk 0")


def test_a_file_that_is_too_short_or_too_long(tmp_path: Path) -> None:
    raw = make(tmp_path / "m")
    start = body(raw)
    refused(tmp_path / "m", raw[:-1], "too short by 1 bytes")
    refused(tmp_path / "m", raw[: start + 3 * SLOT], "too short by 56 bytes")
    refused(tmp_path / "m", raw[:start], "too short")
    refused(tmp_path / "m", raw[: start - 1], "its header is not complete")
    refused(tmp_path / "m", raw[:8], "fewer than 9 bytes")
    refused(tmp_path / "m", b"", "fewer than 9 bytes")
    refused(tmp_path / "m", bytes(raw) + b"x", "too long by 1 bytes")


def test_the_length_of_the_header_is_bounded_before_it_is_read(tmp_path: Path) -> None:
    raw = make(tmp_path / "m")
    for length in (0, 1, MAX_HEADER_BYTES + 1, 2**32 - 1):
        struct.pack_into(">I", raw, 5, length)
        refused(tmp_path / "m", raw, f"a header of {length} bytes")


def test_other_formats_and_versions_are_named(tmp_path: Path) -> None:
    raw = make(tmp_path / "m")
    refused(tmp_path / "m", b"PK\x03\x04" + raw[4:], "does not start with FLSW")
    raw[4] = 3
    refused(tmp_path / "m", raw, "version 3; this release reads versions 1 and 2")
    raw[4] = 2
    refused(tmp_path / "m", raw, "states version 2, and its header is of version 1")


def _set(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        document[key] = value

    return change


def _shape(document: dict[str, Any]) -> None:
    document["tensors"][0][2] = [CHUNK, 3]


def _rename(document: dict[str, Any]) -> None:
    document["tensors"][0][0] = "c"


def _swap(document: dict[str, Any]) -> None:
    document["tensors"].reverse()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set("model", "other"), "header or the wrap was altered"),
        (_set("version", 2), "header or the wrap was altered"),
        (_set("round", 3), "header or the wrap was altered"),
        (_set("meta", {"job": "other"}), "header or the wrap was altered"),
        (_set("key", "service"), "header or the wrap was altered"),
        (_set("file", "00" * 16), "header or the wrap was altered"),
        (_shape, "header or the wrap was altered"),
        (_rename, "header or the wrap was altered"),
        (_swap, "header or the wrap was altered"),
        (_set("chunk", 2 * CHUNK), "too short by|too long by"),
    ],
)
def test_a_header_that_states_something_else(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    refused(tmp_path / "m", edited(make(tmp_path / "m"), change), reason)


def test_added_and_removed_recipients_are_found(tmp_path: Path) -> None:
    raw = make(tmp_path / "m")

    def add(document: dict[str, Any]) -> None:
        other = X25519PrivateKey.generate().public_key().public_bytes_raw()
        recipient = other.hex()
        document["wraps"].append({"kem": "x25519", "recipient": recipient, "sealed": "00" * 80})

    refused(tmp_path / "m", edited(raw, add), "the header was altered")
    refused(tmp_path / "m", edited(raw, _set("wraps", [])), "sealed for no key")


MALFORMED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "unknown key": (_set("extra", 1), "'extra' is unknown"),
    "missing key": (lambda d: d.pop("model"), "'model' is missing"),
    "cipher": (_set("aead", "NULL"), "aead"),
    "float version": (_set("version", 1.0), "not the JSON"),
    "negative version": (_set("version", -1), "from 0"),
    "true version": (_set("version", True), "from 0"),
    "huge version": (_set("version", 2**64), "from 0"),
    "text version": (_set("version", "1"), "from 0"),
    "list model": (_set("model", []), "model has the wrong type"),
    "no model": (_set("model", ""), "1 to 256"),
    "long model": (_set("model", "m" * 257), "1 to 256"),
    "surrogate": (_set("model", "\ud800"), "header: "),
    "file id": (_set("file", "00"), "16 bytes"),
    "file hex": (_set("file", "zz"), "header: "),
    "chunk": (_set("chunk", 5000), "power of two"),
    "no chunk": (_set("chunk", 0), "power of two"),
    "huge chunk": (_set("chunk", 2**30), "power of two"),
    "tensor": (_set("tensors", [["a", "U8"]]), "a tensor must be"),
    "tensor type": (_set("tensors", [["a", "X", []]]), "not a type"),
    "tensor shape": (_set("tensors", [["a", "U8", [True]]]), "from 0"),
    "tensor twice": (_set("tensors", [["a", "U8", [1]]] * 2), "the same name"),
    "tensor size": (_set("tensors", [["a", "U8", [2**62, 2**62]]]), "chunks"),
    "many tensors": (_set("tensors", [["a", "U8", []]] * 65_537), "too many"),
    "wrap": (_set("wraps", [{}]), "a wrap must be"),
    "wrap size": (
        _set("wraps", [{"kem": "x25519", "recipient": "00", "sealed": "00"}]),
        "80 bytes",
    ),
    "many wraps": (_set("wraps", [{}] * 65), "too many"),
    "meta list": (_set("meta", {"a": []}), "meta.a"),
    "meta long": (_set("meta", {"a": "x" * 5000}), "4096"),
    "meta many": (_set("meta", {str(i): i for i in range(65)}), "64"),
    "meta key": (_set("meta", {"": 1}), "1 to 64"),
}


@pytest.mark.parametrize("case", sorted(MALFORMED))
def test_malformed_headers_are_refused_before_any_key_is_used(tmp_path: Path, case: str) -> None:
    change, reason = MALFORMED[case]
    (tmp_path / "m").write_bytes(edited(make(tmp_path / "m"), change))
    with pytest.raises(UnsealError, match=reason):
        read_header(tmp_path / "m")


def spellings(header: bytes) -> Iterator[bytes]:
    yield header + b" "
    yield b" " + header
    yield header.replace(b'"round":2', b'"round": 2')
    yield header.replace(b'"round":2', b'"round":2,"round":2')
    yield header.replace(b'"round":2', b'"round":2e0')
    yield header.replace(b'"model":"demo"', b'"model":"\\u0064emo"')
    yield header.replace(b'"round":2,', b"").replace(b'{"aead"', b'{"round":2,"aead"')
    yield json.dumps({**json.loads(header), "file": json.loads(header)["file"].upper()}).encode()


def test_another_spelling_of_the_same_header_is_refused(tmp_path: Path) -> None:
    raw = make(tmp_path / "m")
    header = bytes(raw[9 : body(raw) - 32])
    for spelling in spellings(header):
        assert spelling != header
        refused(tmp_path / "m", with_header(raw, spelling), "header")


@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b"{" * 50_000, b"[" * 50_000, b"1" * 5000, b"\xff\xfe", b"NaN"]
)
def test_what_is_no_header_at_all(data: bytes) -> None:
    with pytest.raises(UnsealError, match="header"):
        Header.from_bytes(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused_in_one_way(data: bytes) -> None:
    with pytest.raises(UnsealError):
        Header.from_bytes(data)
