"""Reference manifests of NVIDIA: genuine ones match, and every other is refused by name."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from signxml import DigestAlgorithm, SignatureMethod

from attestation.binding import ReportData
from attestation.endorsements.chains import split_certificates
from attestation.endorsements.nvidia_rim import Rim, match_rims, read_label
from attestation.endorsements.xmlsig import MAX_XML_BYTES
from attestation.errors import (
    AttestationError,
    EndorsementError,
    EvidenceError,
    FreshnessError,
    SignatureError,
    VerificationError,
)
from attestation.evidence import Evidence, Tee
from attestation.quotes.nvidia import NvidiaReport
from attestation.trust import NVIDIA_RIM_ROOT_KEY, TrustAnchors
from attestation.verifiers import verify
from tests.vectors import nvidia as made

REAL = Path(__file__).parents[2] / "vectors/nvidia"
REAL_NOW = datetime(2025, 10, 24, 12, tzinfo=UTC)
DRIVER_RIM = (REAL / "NV_GPU_DRIVER_GH100_550.90.07.xml").read_bytes()
VBIOS_RIM = (REAL / "NV_GPU_VBIOS_1010_0200_882_96009F0001.xml").read_bytes()
OTHER_DRIVER = (REAL / "other_driver.swidtag").read_bytes()
OTHER_VBIOS = (REAL / "other_vbios_96005E0001.swidtag").read_bytes()
HOPPER = NvidiaReport.parse((REAL / "hopper_report.bin").read_bytes())

GPU = made.Device("GPU")
BINDING = ReportData(value=bytes(range(32)))
REPORT = NvidiaReport.parse(GPU.report(BINDING.value))
DRIVER, VBIOS = made.rims()


def match(*rims: bytes, report: NvidiaReport = REPORT, now: datetime = made.NOW) -> tuple[Rim, ...]:
    return match_rims(report, rims, root=made.TRUST.nvidia_rim_root, now=now)


def real(*rims: bytes, report: NvidiaReport = HOPPER, now: datetime = REAL_NOW) -> tuple[Rim, ...]:
    return match_rims(report, rims, root=NVIDIA_RIM_ROOT_KEY, now=now)


def test_the_pinned_root_is_nvidias() -> None:
    (root,) = split_certificates((REAL / "rim_root.pem").read_bytes(), "root")
    assert root.key_digest == NVIDIA_RIM_ROOT_KEY


def test_a_genuine_gpu_matches_21_measurements_of_its_driver_and_12_of_its_vbios() -> None:
    driver, vbios = real(VBIOS_RIM, OTHER_DRIVER, DRIVER_RIM)
    assert (driver.product, driver.edition, driver.version) == ("GH100", "GPU", "550.90.07")
    assert (len(driver.golden), len(vbios.golden)) == (21, 12)
    assert driver.mismatches(HOPPER) == vbios.mismatches(HOPPER) == ()
    # RIM index i is SPDM index i + 1: shifted by one, next to nothing is equal.
    shifted = {index - 1: value for index, value in HOPPER.measurements.items()}
    assert len(driver.mismatches(replace(HOPPER, measurements=shifted))) > 15


def test_a_genuine_gpu_has_the_claim_end_to_end() -> None:
    evidence = Evidence(
        tee=Tee.NVIDIA,
        quote=(REAL / "hopper_report.bin").read_bytes(),
        endorsements=((REAL / "hopper_chain.pem").read_bytes(),),
    )
    trust = TrustAnchors(collateral=(DRIVER_RIM, VBIOS_RIM))
    binding = ReportData(value=HOPPER.nonce)
    claims = verify(evidence, binding=binding, trust=trust, now=REAL_NOW)
    assert len(claims.measurements["nvidia.rim"]) == 32
    assert claims.attributes["nvidia.rim"] == (
        "matches 550.90.07 (21 measurements), 96.00.9F.00.01 (12 measurements)"
    )
    assert claims.attributes["nvidia.device"] == "NVIDIA:GH100:48B02D92494BADF4"
    sent = replace(evidence, endorsements=(*evidence.endorsements, DRIVER_RIM, VBIOS_RIM))
    with_them = verify(sent, binding=binding, trust=TrustAnchors(), now=REAL_NOW)
    assert with_them.measurements["nvidia.rim"] == claims.measurements["nvidia.rim"]
    with pytest.raises(EndorsementError, match=r"550\.90\.07.*545\.00"):
        verify(
            evidence,
            binding=binding,
            trust=TrustAnchors(collateral=(OTHER_DRIVER, VBIOS_RIM)),
            now=REAL_NOW,
        )


@pytest.mark.parametrize(
    ("rims", "message"),
    [
        ((OTHER_DRIVER, VBIOS_RIM), r"no RIM is for driver 550\.90\.07.*545\.00"),
        ((DRIVER_RIM, OTHER_VBIOS), r"no RIM is for VBIOS 96\.00\.9F\.00\.01.*96\.00\.5E\.00\.01"),
        ((DRIVER_RIM,), r"no RIM is for VBIOS"),
        ((VBIOS_RIM,), r"no RIM is for driver"),
    ],
)
def test_a_rim_of_another_version_is_refused_with_both_named(
    rims: tuple[bytes, ...], message: str
) -> None:
    with pytest.raises(EndorsementError, match=message):
        real(*rims)


def test_genuine_rims_of_other_versions_do_not_match_the_measurements() -> None:
    when = datetime(2025, 6, 1, tzinfo=UTC)
    driver = Rim.verify(OTHER_DRIVER, root=NVIDIA_RIM_ROOT_KEY, now=when)
    vbios = Rim.verify(OTHER_VBIOS, root=NVIDIA_RIM_ROOT_KEY, now=when)
    assert len(driver.mismatches(HOPPER)) == 15
    assert vbios.mismatches(HOPPER) == (2, 3, 4, 10, 12)
    with pytest.raises(FreshnessError, match="expired on 2025-06-26"):
        Rim.verify(OTHER_DRIVER, root=NVIDIA_RIM_ROOT_KEY, now=REAL_NOW)


def test_a_signer_counts_within_its_dates_only() -> None:
    for now, word in (
        (datetime(2024, 5, 31, tzinfo=UTC), "not valid before"),
        (datetime(2026, 6, 2, tzinfo=UTC), "expired"),
    ):
        with pytest.raises(FreshnessError, match=word):
            real(DRIVER_RIM, VBIOS_RIM, now=now)


def test_another_root_is_refused() -> None:
    with pytest.raises(EndorsementError, match="not the pinned NVIDIA RIM root"):
        real(*made.rims(), report=REPORT)
    with pytest.raises(EndorsementError, match="not the pinned NVIDIA RIM root"):
        match(DRIVER_RIM, VBIOS_RIM, report=HOPPER, now=REAL_NOW)


def test_every_flipped_byte_of_the_covered_part_is_refused() -> None:
    end = VBIOS_RIM.index(b"<ds:Signature")
    for at in range(0, end, 61):
        flipped = VBIOS_RIM[:at] + bytes([VBIOS_RIM[at] ^ 1]) + VBIOS_RIM[at + 1 :]
        with pytest.raises((SignatureError, EvidenceError)):
            Rim.verify(flipped, root=NVIDIA_RIM_ROOT_KEY, now=REAL_NOW)


def test_a_flipped_byte_of_the_signature_is_refused_or_changes_nothing() -> None:
    genuine = Rim.verify(VBIOS_RIM, root=NVIDIA_RIM_ROOT_KEY, now=REAL_NOW)
    same = 0
    for at in range(VBIOS_RIM.index(b"<ds:Signature"), len(VBIOS_RIM), 23):
        flipped = VBIOS_RIM[:at] + bytes([VBIOS_RIM[at] ^ 1]) + VBIOS_RIM[at + 1 :]
        try:
            found = Rim.verify(flipped, root=NVIDIA_RIM_ROOT_KEY, now=REAL_NOW)
        except (EvidenceError, VerificationError):
            continue
        assert found == genuine
        same += 1
    assert same < 5


def test_whitespace_around_the_document_means_nothing() -> None:
    genuine = Rim.verify(VBIOS_RIM, root=NVIDIA_RIM_ROOT_KEY, now=REAL_NOW)
    padded = b'<?xml version="1.0" encoding="UTF-8"?>\n' + VBIOS_RIM + b"\n\n"
    assert Rim.verify(padded, root=NVIDIA_RIM_ROOT_KEY, now=REAL_NOW) == genuine


# Documents of our own: each is refused, and its twin is not.


def test_ours_match() -> None:
    driver, vbios = match(DRIVER, VBIOS)
    assert driver.golden == {2: (made.golden(2),), 3: (bytes(48), made.golden(3))}
    assert sorted(vbios.golden) == [4, 5]


def test_an_alternative_is_enough_and_another_value_is_not() -> None:
    second = NvidiaReport.parse(GPU.report(BINDING.value, measurements={3: bytes(48)}))
    assert match(DRIVER, VBIOS, report=second)
    wrong = NvidiaReport.parse(GPU.report(BINDING.value, measurements={3: b"\1" * 48}))
    with pytest.raises(EndorsementError, match=r"measurement 3 \(SPDM index\)"):
        match(DRIVER, VBIOS, report=wrong)
    short = NvidiaReport.parse(GPU.report(BINDING.value, measurements={5: made.golden(5)[:32]}))
    with pytest.raises(EndorsementError, match=r"measurement 5 .*VBIOS"):
        match(DRIVER, VBIOS, report=short)


def test_an_inactive_measurement_demands_nothing_and_a_missing_one_is_refused() -> None:
    assert 1 not in match(DRIVER, VBIOS)[0].golden
    beyond = made.sign(made.tag(made.DRIVER, [made.resource(40, made.golden(41))]))
    with pytest.raises(EndorsementError, match="measurement 41"):
        match(beyond, VBIOS)
    inactive = made.sign(made.tag(made.DRIVER, [made.resource(1, bytes(48), active="False")]))
    with pytest.raises(EvidenceError, match="no active measurement"):
        match(inactive, VBIOS)


def test_the_firmware_of_nvdec0_counts_where_nvdec0_is_enabled() -> None:
    rim = made.sign(
        made.tag(made.DRIVER, [made.resource(1, made.golden(2)), made.resource(35, b"\2" * 48)])
    )
    assert match(rim, VBIOS)
    enabled = NvidiaReport.parse(GPU.report(BINDING.value, opaque={11: b"\xaa"}))
    with pytest.raises(EndorsementError, match="measurement 36"):
        match(rim, VBIOS, report=enabled)


def test_two_rims_may_not_demand_the_same_measurement() -> None:
    both = made.sign(made.tag(made.VBIOS, [made.resource(1, made.golden(2))]))
    with pytest.raises(EndorsementError, match="both demand measurement 2"):
        match(DRIVER, both)


def test_a_rim_of_a_switch_is_not_one_of_a_gpu() -> None:
    switch = made.Device("SWITCH", switch=True)
    links = [bytes([number]) * 8 for number in range(1, 9)]
    report = NvidiaReport.parse(switch.report(BINDING.value, links=links))
    resources = [made.resource(1, made.golden(2))]
    rim = made.sign(made.tag(made.SWITCH_VBIOS, resources, edition="SWITCH", product="LS10"))
    assert [item.version for item in match(rim, report=report)] == [made.SWITCH_VBIOS]
    with pytest.raises(EndorsementError, match=r"no RIM is for VBIOS 96\.10\.6D\.00\.01"):
        match(made.sign(made.tag(made.SWITCH_VBIOS, resources)), report=report)


@pytest.mark.parametrize("edition", ["GPU", "SWITCH"])
def test_a_rim_that_verifies_is_taken_where_another_does_not(edition: str) -> None:
    forged = made.sign(
        made.tag(made.DRIVER, [made.resource(1, bytes(48))]), made.Authority("Elsewhere", ca=False)
    )
    unlike = made.sign(made.tag(made.DRIVER, [made.resource(1, bytes(48))], edition=edition))
    assert match(forged, unlike, DRIVER, VBIOS)
    with pytest.raises(EndorsementError, match="not the pinned"):
        match(forged, VBIOS)


def test_one_that_cannot_be_read_does_not_affect_the_others() -> None:
    malformed = DRIVER.replace(b"<Payload>", b"<!-- --><Payload>")
    odd = made.sign(made.tag(made.DRIVER, [made.resource(1, made.golden(2), active="yes")]))
    assert match(malformed, odd, DRIVER, VBIOS)
    with pytest.raises(EndorsementError, match="no RIM is for driver"):
        match(malformed, VBIOS)
    with pytest.raises(EvidenceError, match="True or False"):
        match(odd, VBIOS)
    broken = (malformed, made.answer(made.RIM_CA, end=None))
    trust = replace(made.TRUST, collateral=(*broken, DRIVER, VBIOS, *made.answers(GPU)))
    claims = verify(GPU.evidence(BINDING.value), binding=BINDING, trust=trust, now=made.NOW)
    assert {"nvidia.rim", "nvidia.revocation"} <= set(claims.measurements)


def test_a_signer_for_another_purpose_is_refused() -> None:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])
    responder = made.Authority("Responder", made.RIM_CA, ca=False, extensions=(purpose,))
    for signer in (responder, made.RIM_CA):
        rim = made.sign(made.tag(made.DRIVER, made.DRIVER_RESOURCES), signer)
        with pytest.raises(EndorsementError, match="is not for signing RIMs"):
            match(rim, VBIOS)
    stolen = made.Authority("RIM Signer", made.Authority("RIM CA", made.RIM_ROOT), ca=False)
    mixed = made.sign(made.tag(made.DRIVER, made.DRIVER_RESOURCES), stolen)
    genuine = split_certificates(made.RIM_SIGNER.pem, "chain")
    rest = split_certificates(stolen.pem, "chain")
    for own, other in zip(rest[:2], genuine[:2], strict=True):
        mixed = mixed.replace(_base64(own.der), _base64(other.der))
    with pytest.raises(SignatureError, match="did not sign"):
        match(mixed, VBIOS)


def _base64(der: bytes) -> bytes:
    import base64

    text = base64.b64encode(der)
    return b"\n".join(text[at : at + 64] for at in range(0, len(text), 64))


def _wrapped(genuine: bytes) -> dict[str, bytes]:
    """Documents in which what a careless reader finds is not what the signature covers."""
    start = genuine.index(b"<ds:Signature")
    end = genuine.index(b"</ds:Signature>") + len(b"</ds:Signature>")
    signature, rest = genuine[start:end], genuine[:start] + genuine[end:]
    evil = made.tag(made.DRIVER, [made.resource(1, b"\3" * 48)]).encode()
    inner = evil.replace(b"</SoftwareIdentity>", b"")
    identified = rest.replace(b"<SoftwareIdentity ", b'<SoftwareIdentity Id="x" ')
    return {
        "the signed document inside of another, beside its signature": (
            inner + rest + signature + b"</SoftwareIdentity>"
        ),
        "the signed document with its signature inside of another": (
            inner + genuine + b"</SoftwareIdentity>"
        ),
        "the signed document inside of an Object of its signature": (
            inner
            + signature.replace(
                b"</ds:Signature>", b"<ds:Object>" + rest + b"</ds:Object></ds:Signature>"
            )
            + b"</SoftwareIdentity>"
        ),
        "two signatures": genuine.replace(signature, signature + signature),
        "a reference to a part": genuine.replace(b'URI=""', b'URI="#x"').replace(rest, identified),
        "the signature deeper down": genuine.replace(signature, b"<Meta>" + signature + b"</Meta>"),
        "a second payload": genuine.replace(
            b"<Payload>",
            b"<Payload>" + made.resource(5, b"\3" * 48).encode() + b"</Payload><Payload>",
        ),
    }


@pytest.mark.parametrize("how", sorted(_wrapped(DRIVER)))
def test_a_wrapped_signature_is_refused(how: str) -> None:
    wrapped = _wrapped(DRIVER)[how]
    assert wrapped != DRIVER
    with pytest.raises((EvidenceError, SignatureError)):
        Rim.verify(wrapped, root=made.TRUST.nvidia_rim_root, now=made.NOW)


def test_other_algorithms_and_transforms_are_refused() -> None:
    text = made.tag(made.DRIVER, made.DRIVER_RESOURCES)
    for data in (
        made.sign(text, digest=DigestAlgorithm.SHA256),
        made.sign(text, method=SignatureMethod.ECDSA_SHA256),
        DRIVER.replace(b"2006/12/xml-c14n11", b"2001/10/xml-exc-c14n#"),
        DRIVER.replace(b"#enveloped-signature", b"#base64"),
        DRIVER.replace(b"<ds:DigestValue>", b"<ds:DigestValue>AAAA"),
        DRIVER.replace(b"<ds:SignatureValue>", b"<ds:SignatureValue>AAAA"),
        DRIVER.replace(b"<ds:X509Certificate>", b"<ds:X509Certificate>*", 1),
    ):
        assert data != DRIVER
        with pytest.raises((EvidenceError, SignatureError)):
            Rim.verify(data, root=made.TRUST.nvidia_rim_root, now=made.NOW)


BOMB = (
    b'<!DOCTYPE a [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">'
    b'<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;"><!ENTITY d "&c;&c;&c;&c;&c;&c;&c;&c;">]>'
)


@pytest.mark.parametrize(
    "data",
    [
        BOMB + DRIVER.replace(b"\n<Payload>", b"&d;<Payload>"),
        b'<!DOCTYPE a SYSTEM "http://127.0.0.1:1/a.dtd">' + DRIVER,
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
        + DRIVER.replace(b"\n<Payload>", b"&x;<Payload>"),
        DRIVER.replace(b"<Payload>", b"<!-- a --><Payload>"),
        DRIVER.replace(b"<Payload>", b"<Payload><![CDATA[x]]>"),
        DRIVER.replace(b"<Payload>", b'<?xml-stylesheet href="a"?><Payload>'),
        b'<?xml version="1.0" encoding="UTF-16"?>'.decode().encode("utf-16") + DRIVER,
        (BOMB.decode() + DRIVER.decode()).encode("utf-16"),
        DRIVER.replace(b"\n<Payload>", b"&nbsp;<Payload>"),
        b'<?xml-stylesheet href="a"?>' + DRIVER,
        DRIVER + b"<a/>",
        b"<" * 1000,
        b"<a>" * 5000,
        b"",
    ],
)
def test_dtd_entities_and_what_is_no_plain_xml_are_refused(data: bytes) -> None:
    with pytest.raises(EvidenceError):
        Rim.verify(data, root=made.TRUST.nvidia_rim_root, now=made.NOW)


def test_a_document_that_is_too_large_is_not_parsed() -> None:
    padded = DRIVER + b" " * (MAX_XML_BYTES - len(DRIVER))
    assert Rim.verify(padded, root=made.TRUST.nvidia_rim_root, now=made.NOW)
    with pytest.raises(EvidenceError, match="at most"):
        Rim.verify(padded + b" ", root=made.TRUST.nvidia_rim_root, now=made.NOW)
    with pytest.raises(EvidenceError, match="at most 64"):
        match(*[DRIVER] * 65)
    sent = GPU.evidence(BINDING.value, DRIVER, VBIOS, DRIVER, VBIOS)
    assert verify(sent, binding=BINDING, trust=made.TRUST, now=made.NOW)
    more = replace(sent, endorsements=(*sent.endorsements, DRIVER))
    with pytest.raises(EvidenceError, match="more than 4 RIMs"):
        verify(more, binding=BINDING, trust=made.TRUST, now=made.NOW)


def _many(count: int, form: str) -> bytes:
    return " ".join(form.format(number) for number in range(count)).encode()


@pytest.mark.parametrize(
    "data",
    [
        DRIVER.replace(b"<Payload>", b"<Payload>" + b"<a/>" * 1100),
        DRIVER.replace(b"<Payload>", b"<Payload " + _many(81, 'a{}="1"') + b">"),
        DRIVER.replace(b"<Payload>", b"<Payload " + _many(17, 'xmlns:a{}="u"') + b">"),
    ],
)
def test_a_document_that_is_costly_to_canonicalise_is_refused(data: bytes) -> None:
    with pytest.raises(EvidenceError, match="too many"):
        Rim.verify(data, root=made.TRUST.nvidia_rim_root, now=made.NOW)


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ([made.resource(1, made.golden(2)), made.resource(1, made.golden(2))], "occurs twice"),
        ([made.resource(1, made.golden(2), index="-1")], "index"),
        ([made.resource(1, made.golden(2), index="01")], "index"),
        ([made.resource(1, made.golden(2), index="9999")], "index"),
        ([made.resource(1, made.golden(2), active="yes")], "True or False"),
        ([made.resource(1, made.golden(2), alternatives="2")], "alternatives"),
        ([made.resource(1, made.golden(2), bytes(48), alternatives="1")], "alternatives"),
        ([made.resource(1, alternatives="0")], "alternatives"),
        ([made.resource(1, made.golden(2)[:32])], "SHA-384"),
        ([made.resource(1, made.golden(2), size="32")], "size"),
        ([made.resource(1, made.golden(2), type="File")], "not a measurement"),
        ([made.resource(1, made.golden(2)), "<File/>"], "not a measurement"),
        ([], "no active measurement"),
    ],
)
def test_a_signed_payload_must_be_well_formed(resources: list[str], message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        match(made.sign(made.tag(made.DRIVER, resources)), VBIOS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("<Meta", "<Other"), "0 elements Meta"),
        (lambda text: text.replace("<Payload>", "<Payload/><Payload>"), "2 elements Payload"),
        (lambda text: text.replace(made.SWID, "urn:other"), "SWID"),
        (lambda text: text.replace('product="GH100"/', 'product="a b"/'), "product"),
        (lambda text: text.replace("colloquialVersion", "version"), "colloquialVersion"),
    ],
)
def test_a_tag_must_be_well_formed(change: Callable[[str], str], message: str) -> None:
    text = made.tag(made.DRIVER, made.DRIVER_RESOURCES)
    assert change(text) != text
    with pytest.raises(EvidenceError, match=message):
        Rim.verify(made.sign(change(text)), root=made.TRUST.nvidia_rim_root, now=made.NOW)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(DRIVER)), st.binary(max_size=30), st.integers(0, 30))
def test_no_damage_raises_anything_of_another_tree(at: int, junk: bytes, cut: int) -> None:
    data = DRIVER[:at] + junk + DRIVER[at + cut :]
    try:
        found = Rim.verify(data, root=made.TRUST.nvidia_rim_root, now=made.NOW)
    except AttestationError:
        return
    assert found == match(DRIVER, VBIOS)[0]


def test_a_label_states_what_a_rim_is_for_and_until_when() -> None:
    label = read_label(DRIVER_RIM)
    assert (label.product, label.edition, label.version) == ("GH100", "GPU", "550.90.07")
    assert min(item.end for item in label.chain) == datetime(2026, 6, 1, 2, 8, 29, tzinfo=UTC)
    with pytest.raises(EvidenceError):
        read_label(b"<a/>")


@pytest.mark.parametrize("missing", ["lxml", "signxml"])
def test_without_the_extra_the_error_names_it(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = builtins.__import__

    def refusing(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return load(name, *rest, **more)

    monkeypatch.delitem(sys.modules, "attestation.endorsements.xmlsig")
    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(EndorsementError, match=f"{missing} is not installed") as caught:
        match(DRIVER, VBIOS)
    assert caught.value.hint == "pip install 'fedlearn[nvidia]'"


def test_a_rim_is_judged_at_the_time_that_is_given() -> None:
    assert match(DRIVER, VBIOS, now=made.NOW + timedelta(days=300))
    with pytest.raises(FreshnessError, match="expired"):
        match(DRIVER, VBIOS, now=made.NOW + timedelta(days=4000))
