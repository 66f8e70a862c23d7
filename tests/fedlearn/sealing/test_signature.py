"""Who sealed a file: the holder of a pinned key, or nobody that a reader may believe."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.errors import UnsealError
from fedlearn.sealing import (
    FileSigner,
    PrivateKey,
    RandomKey,
    Sealed,
    SealedReader,
    Tensor,
    open_sealed,
    seal,
)
from fedlearn.sealing.keys import derive

CHUNK = 4096
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
OWNER = X25519PrivateKey.generate()
SIGNER, OTHER = (FileSigner(ec.generate_private_key(ec.SECP256R1())) for _ in range(2))
PIN = hashlib.sha256(SIGNER.public_key).digest()


def make(path: Path, signer: FileSigner | None = SIGNER) -> Sealed:
    return seal(
        path,
        [
            Tensor(name="a", dtype="U8", shape=(3 * CHUNK,), data=os.urandom(3 * CHUNK)),
            Tensor(name="b", dtype="F32", shape=(10,), data=os.urandom(40)),
        ],
        model="demo",
        version=1,
        round=2,
        key=RandomKey(),
        recipients=[OWNER.public_key().public_bytes_raw()],
        chunk=CHUNK,
        signer=signer,
    )


def opened(path: Path) -> SealedReader:
    return open_sealed(path, PrivateKey(OWNER))


def test_the_signer_of_a_file_is_known_by_its_pin(tmp_path: Path) -> None:
    written = make(tmp_path / "m")
    raw = (tmp_path / "m").read_bytes()
    assert written.size == len(raw)
    assert written.digest == hashlib.sha256(b"fedlearn/flsw2/digest\0" + raw[:-64]).digest()
    with opened(tmp_path / "m") as reader:
        assert reader.header.signer == SIGNER.public_key
        assert reader.verify() == reader.digest() == written.digest
        assert reader.check_signer({bytes(32), PIN}) == PIN
        with pytest.raises(UnsealError, match=f"names {PIN.hex()} as its signer"):
            reader.check_signer({hashlib.sha256(OTHER.public_key).digest()})


def test_a_file_that_anybody_made_for_the_owner_is_nobodys(tmp_path: Path) -> None:
    make(tmp_path / "m", None)
    with opened(tmp_path / "m") as reader:
        reader.verify()
        with pytest.raises(UnsealError, match="it is not signed"):
            reader.check_signer({PIN})
    make(tmp_path / "m", OTHER)
    with opened(tmp_path / "m") as reader:
        with pytest.raises(UnsealError, match="which is not pinned"):
            reader.check_signer({PIN})


def test_every_byte_counts(tmp_path: Path) -> None:
    make(tmp_path / "m")
    raw = (tmp_path / "m").read_bytes()
    for position in range(0, len(raw), 7):
        changed = bytearray(raw)
        changed[position] ^= 1
        (tmp_path / "m").write_bytes(changed)
        with pytest.raises(UnsealError):
            with opened(tmp_path / "m") as reader:
                reader.check_signer({PIN})
    for cut in (raw[:-1], raw[:-64], raw + b"x"):
        (tmp_path / "m").write_bytes(cut)
        with pytest.raises(UnsealError, match=r"too short by|too long by"):
            opened(tmp_path / "m")


def test_who_holds_the_content_key_makes_no_other_contents_under_the_signature(
    tmp_path: Path,
) -> None:
    """AES-GCM does not commit to a plaintext, so a digest over tags would not do."""
    make(tmp_path / "m")
    raw = bytearray((tmp_path / "m").read_bytes())
    start = 9 + struct.unpack_from(">I", raw, 5)[0] + 32
    with opened(tmp_path / "m") as reader:
        content_key = PrivateKey(OWNER).content_key_of(reader.header)
        keys = derive(content_key, reader.header)
        nonce = keys.prefix + struct.pack(">IB", 0, 0)
        forged = keys.aead.encrypt(nonce, b"x" * CHUNK, reader.header.core)
    raw[start : start + len(forged)] = forged
    (tmp_path / "m").write_bytes(raw)
    with opened(tmp_path / "m") as reader:
        reader.verify()
        with pytest.raises(UnsealError, match="did not sign this file"):
            reader.check_signer({PIN})


def test_the_owner_cannot_put_another_signer_into_a_file(tmp_path: Path) -> None:
    make(tmp_path / "m", OTHER)
    raw = (tmp_path / "m").read_bytes()
    length = struct.unpack_from(">I", raw, 5)[0]
    document = json.loads(raw[9 : 9 + length])
    document["signer"] = SIGNER.public_key.hex()
    header = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    (tmp_path / "m").write_bytes(raw[:9] + header + raw[9 + length :])
    with pytest.raises(UnsealError, match="header or the wrap was altered"):
        opened(tmp_path / "m")


def test_a_signature_has_one_spelling(tmp_path: Path) -> None:
    make(tmp_path / "m")
    raw = (tmp_path / "m").read_bytes()
    r, s = raw[-64:-32], int.from_bytes(raw[-32:], "big")
    assert s <= ORDER // 2
    zero = bytes(32)
    for other in (r + (ORDER - s).to_bytes(32, "big"), zero + raw[-32:], r + zero, b"\xff" * 64):
        (tmp_path / "m").write_bytes(raw[:-64] + other)
        with opened(tmp_path / "m") as reader:
            with pytest.raises(UnsealError, match=r"upper half|not a signature"):
                reader.check_signer({PIN})


def with_signer(raw: bytes, signer: object) -> bytes:
    length = struct.unpack_from(">I", raw, 5)[0]
    document = {**json.loads(raw[9 : 9 + length]), "signer": signer}
    header = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return raw[:5] + struct.pack(">I", len(header)) + header + raw[9 + length :]


def test_a_header_names_a_key_on_p256_in_one_encoding(tmp_path: Path) -> None:
    make(tmp_path / "m")
    raw = (tmp_path / "m").read_bytes()
    p384 = ec.generate_private_key(ec.SECP384R1()).public_key()
    for signer in (
        "",
        None,
        7,
        "zz",
        "00",
        p384.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex(),
        SIGNER.public_key.hex() + "00",
    ):
        (tmp_path / "m").write_bytes(with_signer(raw, signer))
        with pytest.raises(UnsealError, match="header"):
            opened(tmp_path / "m")
    with pytest.raises(ValueError, match="P-256"):
        FileSigner(ec.generate_private_key(ec.SECP384R1()))


def test_a_signed_file_is_not_taken_for_an_unsigned_one(tmp_path: Path) -> None:
    make(tmp_path / "m")
    raw = bytearray((tmp_path / "m").read_bytes())
    raw[4] = 1
    (tmp_path / "m").write_bytes(raw)
    with pytest.raises(UnsealError, match="states version 1, and its header is of version 2"):
        opened(tmp_path / "m")
    length = struct.unpack_from(">I", raw, 5)[0]
    document = json.loads(raw[9 : 9 + length])
    del document["signer"]
    header = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    head = bytes(raw[:5]) + struct.pack(">I", len(header)) + header
    mac = hmac.digest(bytes(32), head, "sha256")
    (tmp_path / "m").write_bytes(head + mac + bytes(raw[9 + length + 32 : -64]))
    with pytest.raises(UnsealError, match="header or the wrap was altered"):
        opened(tmp_path / "m")
