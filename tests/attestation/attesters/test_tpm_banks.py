"""TPMs without a SHA-256 bank of registers: what they quote, seal and are asked for."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from attestation.attesters.software_tpm import SoftwareTpm
from attestation.attesters.tpm import QUOTED_PCRS, TpmAttester
from attestation.attesters.tpm2_tools import Tpm2Tools
from attestation.attesters.tpm_log import RuntimeLog
from attestation.endorsements.offline import Input, gather
from attestation.errors import AttesterError, EventLogError, UnsealError
from attestation.evidence import Claims, Evidence, Tee
from attestation.logs.eventlog import EventLog
from attestation.logs.runtime_events import Measurement, record
from attestation.policy.appraise import appraise
from attestation.policy.draft import draft_policy
from attestation.policy.model import TpmRules
from attestation.policy.parse import parse_policy
from attestation.policy.references import log_references
from attestation.quotes.tpm import TpmQuote
from attestation.tpm.seal import TpmSeal
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from tests.fakes.synthetic_tpm import binding

REPORTED = Path(__file__).parents[1] / "reported"
APP = b"a" * 32


def allocate(tpm: SoftwareTpm, *banks: str) -> None:
    """Give the TPM these banks and no others, as a machine's firmware does."""
    chosen = "+".join(
        f"{bank}:{'all' if bank in banks else 'none'}"
        for bank in ("sha1", "sha256", "sha384", "sha512")
    )
    with Tpm2Tools(tpm.tcti).workspace() as work:
        work.run("pcrallocate", "-Q", chosen)
    tpm.stop()
    tpm.start()


@pytest.fixture
def sha384_tpm(fresh_tpm: SoftwareTpm) -> SoftwareTpm:
    """A software TPM whose only bank is that of SHA-384."""
    allocate(fresh_tpm, "sha384")
    return fresh_tpm


def check(evidence: Evidence, attester: TpmAttester, bound: object, **anchors: object) -> Claims:
    digest = hashlib.sha256(attester.attestation_key.spki).digest()
    trust = replace(TrustAnchors(tpm_aks=frozenset([digest])), **anchors)  # type: ignore[arg-type]
    return verify(evidence, binding=bound, trust=trust, now=datetime.now(UTC))  # type: ignore[arg-type]


@pytest.mark.swtpm
@pytest.mark.parametrize("ak", ["ecdsa", "rsassa", "rsapss"])
def test_a_tpm_with_sha384_alone_measures_and_is_verified(
    sha384_tpm: SoftwareTpm, tmp_path: Path, ak: str
) -> None:
    attester = TpmAttester(tmp_path / "site", tcti=sha384_tpm.tcti, scope="job-1", ak=ak)
    attester.extend("app", APP)
    bound = binding()
    evidence = attester.collect(bound)
    claims = check(evidence, attester, bound)
    assert claims.measurements["app"] == APP
    registers = {name for name in claims.measurements if name.startswith("pcr.")}
    assert registers == {f"pcr.{number}.sha384" for number in QUOTED_PCRS}
    again = TpmAttester(tmp_path / "site", tcti=sha384_tpm.tcti, scope="job-1", ak=ak)
    again.extend("app", APP)
    assert check(again.collect(bound), again, bound).measurements["app"] == APP


@pytest.mark.swtpm
@pytest.mark.parametrize(
    ("banks", "taken"),
    [
        (("sha1", "sha256", "sha384"), ""),
        (("sha512",), ".sha512"),
        (("sha384", "sha512"), ".sha384"),
    ],
)
def test_the_first_bank_that_counts_is_taken(
    fresh_tpm: SoftwareTpm,
    tmp_path: Path,
    banks: tuple[str, ...],
    taken: str,
) -> None:
    allocate(fresh_tpm, *banks)
    attester = TpmAttester(tmp_path / "site", tcti=fresh_tpm.tcti)
    bound = binding()
    assert f"pcr.14{taken}" in check(attester.collect(bound), attester, bound).measurements


@pytest.mark.swtpm
def test_a_tpm_with_sha1_alone_is_refused_with_its_banks(
    fresh_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    allocate(fresh_tpm, "sha1")
    attester = TpmAttester(tmp_path / "site", tcti=fresh_tpm.tcti)
    for act in (
        lambda: attester.extend("app", APP),
        lambda: attester.collect(binding()),
        lambda: TpmSeal(fresh_tpm.tcti, tmp_path / "keys").seal(b"secret"),
    ):
        with pytest.raises(AttesterError, match="has no sha256 or sha384 or sha512 bank") as caught:
            act()
        assert str(caught.value).endswith("its banks are: sha1")
        assert "tpm2_pcrallocate sha256:all" in caught.value.hint
    assert TpmAttester.detect(fresh_tpm.tcti).endswith("its banks are: sha1")


@pytest.mark.swtpm
def test_a_log_of_another_bank_is_of_a_past_boot(sha384_tpm: SoftwareTpm, tmp_path: Path) -> None:
    old = RuntimeLog(tmp_path / "site", 14, "sha256", None)
    old.store(record(EventLog.create(("sha256",)), Measurement(claim="app", digest=bytes(32)), 14))
    attester = TpmAttester(tmp_path / "site", tcti=sha384_tpm.tcti)
    bound = binding()
    assert "app" not in check(attester.collect(bound), attester, bound).measurements
    attester.extend("app", APP)
    assert check(attester.collect(bound), attester, bound).measurements["app"] == APP
    with Tpm2Tools(sha384_tpm.tcti).workspace() as work:
        work.run("pcrextend", "-Q", f"14:sha384={'11' * 48}")
    with pytest.raises(AttesterError, match="was extended by something that is not in"):
        attester.collect(bound)


@pytest.mark.swtpm
def test_a_firmware_log_must_have_digests_of_a_bank_that_the_tpm_has(
    sha384_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    digests = {name: hashlib.new(name, b"boot").digest() for name in ("sha256", "sha384")}
    logs = {}
    for names in (("sha256",), ("sha256", "sha384")):
        kept = {name: digests[name] for name in names}
        log = EventLog.create(names).append(14, 13, kept, b"boot")
        logs[names] = tmp_path / "-".join(names)
        logs[names].write_bytes(log.to_bytes())
    with pytest.raises(AttesterError, match="has no sha256 bank"):
        TpmAttester(tmp_path / "one", tcti=sha384_tpm.tcti, firmware_log=logs["sha256",]).extend(
            "app", APP
        )
    with Tpm2Tools(sha384_tpm.tcti).workspace() as work:
        work.run("pcrextend", "-Q", f"14:sha384={digests['sha384'].hex()}")
    attester = TpmAttester(
        tmp_path / "two", tcti=sha384_tpm.tcti, firmware_log=logs["sha256", "sha384"]
    )
    attester.extend("app", APP)
    bound = binding()
    boot = hashlib.sha384(bytes(48) + digests["sha384"]).digest()
    claims = check(attester.collect(bound), attester, bound, tpm_boot_values=frozenset([boot]))
    assert claims.measurements["app"] == APP


@pytest.mark.swtpm
def test_a_secret_is_sealed_to_the_bank_that_there_is(
    sha384_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    seal = TpmSeal(sha384_tpm.tcti, tmp_path / "keys")
    secret = os.urandom(32)
    blob = seal.seal(secret)
    assert seal.unseal(blob) == secret
    with Tpm2Tools(sha384_tpm.tcti).workspace() as work:
        work.run("pcrextend", "-Q", f"14:sha384={'11' * 48}")
    with pytest.raises(UnsealError, match="PCRs 7, 14"):
        seal.unseal(blob)
    # Under the bank that is not there, the TPM would compare no register at all.
    with pytest.raises(UnsealError, match="has no sha256 bank"):
        seal.unseal(b"FLTS\x01" + blob[5:])


@pytest.mark.swtpm
def test_a_secret_opens_no_more_once_its_bank_is_gone(
    fresh_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    seal = TpmSeal(fresh_tpm.tcti, tmp_path / "keys")
    blob = seal.seal(b"secret")
    allocate(fresh_tpm, "sha384")
    with pytest.raises(UnsealError, match="has no sha256 bank"):
        TpmSeal(fresh_tpm.tcti, tmp_path / "keys").unseal(blob)


def test_reference_values_of_a_log_are_of_the_bank_that_it_has() -> None:
    digests = {name: hashlib.new(name, b"boot").digest() for name in ("sha1", "sha256", "sha384")}
    for banks, claim in (
        (("sha1", "sha256", "sha384"), "pcr.4"),
        (("sha1", "sha384"), "pcr.4.sha384"),
    ):
        log = EventLog.create(banks).append(4, 13, {b: digests[b] for b in banks}, b"boot")
        [value] = log_references(log.to_bytes(), tee=Tee.TPM)
        bank = "sha384" if claim.endswith("sha384") else "sha256"
        size = hashlib.new(bank).digest_size
        assert value.claim == claim
        assert value.value == hashlib.new(bank, bytes(size) + digests[bank]).digest()
    alone = EventLog.create(("sha1",)).append(4, 13, {"sha1": digests["sha1"]}, b"boot")
    with pytest.raises(EventLogError, match="no sha256 digests"):
        log_references(alone.to_bytes(), tee=Tee.TPM)


def reported() -> tuple[Evidence, TrustAnchors]:
    names = ("p384.sig", "p384.pcrs", "p384.ak.pem")
    return gather(
        Input(name="p384.msg", data=(REPORTED / "p384.msg").read_bytes()),
        endorsements=tuple(Input(name=n, data=(REPORTED / n).read_bytes()) for n in names),
    )


def claims_of_the_report() -> Claims:
    evidence, trust = reported()
    return verify(evidence, binding=None, trust=trust, now=datetime(2026, 11, 1, tzinfo=UTC))


def test_a_register_that_a_policy_requires_may_be_of_any_bank_that_counts() -> None:
    policy = parse_policy((REPORTED / "p384.policy.toml").read_bytes())
    claims = claims_of_the_report()
    now = datetime(2026, 11, 1, tzinfo=UTC)
    result = appraise(policy, claims, now=now, require_binding=False)
    required = {item.claim: item for item in result.findings if "require" in item.claim}
    assert required["require.pcr.0"].actual == "covered as pcr.0.sha384"
    assert not result.refusals
    more = replace(policy, tpm=TpmRules(pcrs=(0, 7, 14)))
    refused = appraise(more, claims, now=now, require_binding=False).refusals
    assert [item.claim for item in refused] == ["require.pcr.14"]


def test_a_reference_for_another_bank_is_refused_and_states_what_was_quoted() -> None:
    policy = parse_policy((REPORTED / "p384.policy.toml").read_bytes())
    now = datetime(2026, 11, 1, tzinfo=UTC)
    other = replace(policy.references[0], claim="pcr.0")
    policy = replace(policy, references=(other, *policy.references[1:]))
    result = appraise(policy, claims_of_the_report(), now=now, require_binding=False)
    assert {item.claim for item in result.refusals} == {"launch_identity", "pcr.0"}
    [refused] = [item for item in result.refusals if item.claim == "pcr.0"]
    assert (refused.claim, refused.actual) == ("pcr.0", "absent")
    assert refused.remedy.startswith("the quote has pcr.0.sha384")


def test_a_draft_names_registers_with_their_bank() -> None:
    claims = claims_of_the_report()
    now = datetime(2026, 11, 1, tzinfo=UTC)
    policy = parse_policy(draft_policy(claims, source="x", now=now).text.encode())
    assert {item.claim for item in policy.references} == {
        f"pcr.{number}.sha384" for number in TpmQuote.from_evidence(reported()[0]).pcrs["sha384"]
    }
    assert not appraise(policy, claims, now=now, require_binding=False).refusals
