"""FLSW versions 1 and 2, read by a second implementation that knows only the documented layout.

The files under ``tests/vectors/sealed`` were written by the first releases of each version: what
reads them must go on reading them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_der_public_key

from attestation.errors import UnsealError
from fedlearn.sealing import FileSigner, PrivateKey, RandomKey, Tensor, open_sealed, seal

VECTORS = Path(__file__).parents[1] / "vectors" / "sealed"
SIGNER = FileSigner(ec.derive_private_key(0xF15E, ec.SECP256R1()))
OWNER = X25519PrivateKey.from_private_bytes(bytes(range(32)))
VALUES = {
    "weight": ("F32", (3, 700), bytes(i * 7 % 251 for i in range(8400))),
    "empty": ("I64", (0,), b""),
    "bias": ("BF16", (5,), bytes(range(10))),
}
SIZES = {"F32": 4, "I64": 8, "BF16": 2}


def read_as_documented(
    raw: bytes, private: X25519PrivateKey
) -> tuple[dict[str, Any], dict[str, bytes]]:
    magic, version, length = struct.unpack_from(">4sBI", raw)
    assert (magic, version) in ((b"FLSW", 1), (b"FLSW", 2))
    header = json.loads(raw[9 : 9 + length])
    assert ("signer" in header) == (version == 2)
    if version == 2:
        raw, signature = raw[:-64], raw[-64:]
        key = load_der_public_key(bytes.fromhex(header["signer"]))
        assert isinstance(key, ec.EllipticCurvePublicKey)
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        assert s <= 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551 // 2
        digest = hashlib.sha256(b"fedlearn/flsw2/digest\0" + raw).digest()
        message = b"fedlearn/flsw2/signature\0" + digest
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
    core_document = {key: value for key, value in header.items() if key != "wraps"}
    canonical = json.dumps(core_document, sort_keys=True, separators=(",", ":"))
    core = hashlib.sha256(canonical.encode()).digest()

    public = private.public_key().public_bytes_raw().hex()
    [wrap] = [item for item in header["wraps"] if item["recipient"] == public]
    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    sealed_key = bytes.fromhex(wrap["sealed"])
    content_key = suite.decrypt(sealed_key, private, info=b"fedlearn/flsw1/wrap\0" + core)

    file_id = bytes.fromhex(header["file"])
    info = b"fedlearn/flsw1/stream\0" + core
    okm = HKDF(hashes.SHA256(), 71, salt=file_id, info=info).derive(content_key)
    aead, prefix, mac_key = AESGCM(okm[:32]), okm[32:39], okm[39:]
    assert hmac.digest(mac_key, raw[: 9 + length], "sha256") == raw[9 + length : 41 + length]

    plain = header["tensors"]
    pieces = []
    for name, dtype, shape in plain:
        left = SIZES[dtype]
        for size in shape:
            left *= size
        while left:
            pieces.append((name, min(left, header["chunk"])))
            left -= pieces[-1][1]
    values = {name: b"" for name, _, _ in plain}
    at = 41 + length
    for index, (name, size) in enumerate(pieces):
        nonce = prefix + struct.pack(">IB", index, index == len(pieces) - 1)
        values[name] += aead.decrypt(nonce, raw[at : at + size + 16], core)
        at += size + 16
    assert at == len(raw)
    return header, values


def write(path: Path, signer: FileSigner | None) -> None:
    seal(
        path,
        [Tensor(name=n, dtype=t, shape=s, data=d) for n, (t, s, d) in VALUES.items()],
        model="demo",
        version=5,
        round=4,
        key=RandomKey(),
        recipients=[OWNER.public_key().public_bytes_raw()],
        meta={"job": "demo", "final": True, "name": "h\u00f4pital"},
        chunk=4096,
        signer=signer,
    )


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("source", ["fresh", "vector"])
def test_the_documented_layout_is_the_layout(tmp_path: Path, source: str, version: int) -> None:
    path = VECTORS / f"v{version}.flsw"
    if source == "fresh":
        path = tmp_path / "m"
        write(path, SIGNER if version == 2 else None)
    raw = path.read_bytes()
    assert raw[4] == version
    header, values = read_as_documented(raw, OWNER)
    assert (header["model"], header["version"], header["round"]) == ("demo", 5, 4)
    assert values == {name: data for name, (_, _, data) in VALUES.items()}


@pytest.mark.parametrize("version", [1, 2])
def test_the_first_release_of_each_version_still_opens(version: int) -> None:
    path = VECTORS / f"v{version}.flsw"
    with open_sealed(path, PrivateKey(OWNER), model="demo", at_least=5) as reader:
        reader.verify()
        assert reader.header.meta["name"] == "h\u00f4pital"
        for spec, data in reader.tensors():
            assert (spec.dtype, spec.shape, bytes(data)) == VALUES[spec.name]
        pin = hashlib.sha256(SIGNER.public_key).digest()
        if version == 2:
            assert reader.check_signer({pin}) == pin
        else:
            with pytest.raises(UnsealError, match="it is not signed"):
                reader.check_signer({pin})
