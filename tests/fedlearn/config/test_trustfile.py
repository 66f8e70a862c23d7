"""The `[trust]` table: its values become anchors, and a digest is a digest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from fedlearn import config
from fedlearn.config.trustfile import Trust
from fedlearn.errors import ConfigError

AK, EK = "aa" * 32, "ee" * 32


def read(text: str, base: Path | None = None) -> Trust:
    return config.read(Trust, text, where="server.toml", base=base)


def test_every_key_becomes_an_anchor(tmp_path: Path) -> None:
    for name in ("root.der", "collateral.json", "chain.pem"):
        (tmp_path / name).write_bytes(name.encode())
    trust = read(
        f"""
collateral = ["collateral.json"]
endorsements = ["chain.pem"]
tpm_ek_roots = ["root.der"]
tpm_aks = ["{"bb" * 32}"]
tpm_ek_of = {{ {AK} = "{EK}" }}
tpm_boot_values = ["{"cc" * 32}"]
container_servers = ["{"dd" * 48}"]
insecure_sample_keys = ["{"ff" * 32}"]
""",
        tmp_path,
    ).anchors()
    assert trust.tpm_aks == {b"\xbb" * 32, b"\xaa" * 32}
    assert trust.tpm_ek_of == {b"\xaa" * 32: b"\xee" * 32}
    assert trust.tpm_boot_values == {b"\xcc" * 32}
    assert trust.container_servers == {b"\xdd" * 48}
    assert trust.sample_keys == {b"\xff" * 32}
    assert (trust.collateral, trust.endorsements) == ((b"collateral.json",), (b"chain.pem",))
    assert trust.tpm_ek_roots == (b"root.der",)


def test_nothing_is_trusted_by_default() -> None:
    trust = read("").anchors()
    assert not (trust.tpm_aks)
    assert not (trust.tpm_ek_of)
    assert not (trust.sample_keys)
    assert not trust.container_servers


@pytest.mark.parametrize(
    "text",
    [
        'tpm_ek_of = { a = "b" }',
        f'tpm_ek_of = {{ {AK} = "{EK[2:]}" }}',
        f'tpm_ek_of = {{ {AK.upper()} = "{EK}" }}',
        f'tpm_ek_of = ["{AK}"]',
        f'tpm_boot_values = ["{AK}00"]',
        f'container_servers = ["{AK}"]',
        "container_server = []",
    ],
)
def test_what_is_no_digest_is_refused_by_its_key(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(text)
    assert text.split(" ", 1)[0] in str(refused.value)


def test_one_unreadable_root_is_named_and_takes_nothing_from_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(__file__).parents[2] / "attestation" / "reported"
    good = (Path(__file__).parents[2] / "vectors" / "data" / "snp_milan_ask_ark.pem").read_bytes()
    malformed = (folder / "NUVO_2111.pem").read_bytes()
    (tmp_path / "good.pem").write_bytes(good)
    (tmp_path / "NUVO_2111.pem").write_bytes(malformed)
    (tmp_path / "bundle.pem").write_bytes(b"some text\n" + malformed + good)
    trust = read(
        'tpm_ek_roots = ["good.pem", "NUVO_2111.pem"]\nendorsements = ["bundle.pem"]', tmp_path
    )
    anchors = trust.anchors()
    assert len(anchors.tpm_ek_roots) == 2
    reported = [record.getMessage() for record in caplog.records]
    assert reported == list(trust.unread())
    assert len(reported) == 2
    assert str(tmp_path / "NUVO_2111.pem") in reported[0]
    assert f"{tmp_path / 'bundle.pem'}: block 1 cannot be read" in reported[1]
    assert not list(read('tpm_ek_roots = ["good.pem"]', tmp_path).unread())


def test_a_reference_manifest_or_ocsp_answer_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "vectors" / "nvidia"
    rim = (folder / "NV_GPU_DRIVER_GH100_550.90.07.xml").read_bytes()
    answer = (folder / "ocsp_rim_l2.der").read_bytes()
    (tmp_path / "good.xml").write_bytes(rim)
    (tmp_path / "good.der").write_bytes(answer)
    (tmp_path / "bad.xml").write_bytes(rim.replace(b"<ns0:Payload", b"<!-- -->"))
    later = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)
    (tmp_path / "bad.der").write_bytes(later.public_bytes(Encoding.DER))
    reported = list(
        read('collateral = ["good.xml", "bad.xml", "bad.der", "good.der"]', tmp_path).unread()
    )
    assert len(reported) == 2
    assert f"trust.collateral: {tmp_path / 'bad.xml'}: rim: has a DTD" in reported[0]
    assert f"trust.collateral: {tmp_path / 'bad.der'}: ocsp: the responder answered" in reported[1]
    assert not list(read('collateral = ["good.xml", "good.der"]', tmp_path).unread())


def test_collateral_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    data = Path(__file__).parents[2] / "vectors" / "data"
    good = json.loads((data / "tdx_collateral.json").read_bytes())
    (tmp_path / "good.json").write_text(json.dumps(good))
    (tmp_path / "bad.json").write_text(json.dumps({**good, "pck_crl": ""}))
    (tmp_path / "chain.pem").write_bytes((data / "snp_milan_ask_ark.pem").read_bytes())
    output = list(read('collateral = ["good.json", "bad.json", "chain.pem"]', tmp_path).unread())
    assert output[0] == f"trust.collateral: {tmp_path / 'bad.json'}: collateral.pck_crl: is empty"
    assert output[1].startswith(
        f"trust.collateral: {tmp_path / 'chain.pem'}: is not Intel collateral"
    )
    assert len(output) == 2
