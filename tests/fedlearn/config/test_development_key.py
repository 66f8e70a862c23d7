"""Development keys are made once, and named by their digest or their public half."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedlearn.config.attester import sample_key_digest
from fedlearn.config.attesterfile import AttesterSettings
from fedlearn.config.development_key import DEVELOPMENT_KEY, key_digest, make_key, named_digest
from fedlearn.errors import ConfigError


def test_a_key_is_made_once_for_its_owner_and_named_by_either_half(tmp_path: Path) -> None:
    digest = make_key(tmp_path)
    private, public = tmp_path / DEVELOPMENT_KEY, tmp_path / "insecure-development.pub.pem"
    assert private.stat().st_mode & 0o777 == 0o600
    assert make_key(tmp_path) == digest, "a second call takes the key that is there"
    der = serialization.load_pem_public_key(public.read_bytes()).public_bytes(
        Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert hashlib.sha256(der).digest() == digest
    assert key_digest(private) == key_digest(public) == digest
    assert named_digest(str(public)) == named_digest(digest.hex()) == digest
    sample = AttesterSettings(kind="insecure-sample")
    assert sample_key_digest(sample, state=tmp_path) == digest
    assert sample_key_digest(AttesterSettings(), state=tmp_path) is None


def test_a_private_key_is_not_named_to_others(tmp_path: Path) -> None:
    make_key(tmp_path)
    with pytest.raises(ConfigError, match="is a private key") as caught:
        named_digest(str(tmp_path / DEVELOPMENT_KEY))
    assert str(tmp_path / "insecure-development.pub.pem") in caught.value.hint


@pytest.mark.parametrize("text", ["", "abcd", "AB" * 32, "none.pem"])
def test_what_is_neither_a_digest_nor_a_file_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"neither a SHA-256|is a directory"):
        named_digest(text)


def test_other_keys_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    for key in (ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()):
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        file.write_bytes(pem)
        with pytest.raises(ConfigError, match="is an EC key on P-256"):
            key_digest(file)
    file.write_text("no key")
    with pytest.raises(ConfigError, match="not a key in PEM"):
        key_digest(file)
    (tmp_path / DEVELOPMENT_KEY).write_text("no key")
    with pytest.raises(ConfigError, match="not a private key"):
        make_key(tmp_path)
