"""One suite for every attester: what it makes verifies, and is good for nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from attestation.attesters import Attester
from attestation.attesters.ccnp import CcnpAttester
from attestation.attesters.coco import CocoAttester
from attestation.attesters.sample import SampleAttester
from attestation.attesters.software_tpm import SoftwareTpm
from attestation.attesters.tpm import TpmAttester
from attestation.attesters.tsm import TsmAttester
from attestation.errors import AttestationError, AttesterError, BindingError
from attestation.evidence import Claims, Evidence
from attestation.logs.eventlog import EventLog
from attestation.quotes.tpm_keys import spki
from attestation.trust import TrustAnchors, key_digest
from attestation.verifiers import verify
from tests.fakes import ccnp_server, coco_agent, tsm_kernel
from tests.vectors import keys
from tests.vectors.amd import Amd
from tests.vectors.cases import OTHER_BINDINGS, binding
from tests.vectors.intel import APP, JOB, Intel, event_log

ROOT = Path(__file__).parents[2]
INTEL, AMD = Intel(), Amd()
POD = "a" * 64


@dataclass
class Bench:
    """An attester, and the trust under which what it makes is genuine."""

    attester: Attester
    trust: TrustAnchors

    def claims(self, evidence: Evidence) -> Claims:
        return verify(evidence, binding=binding(), trust=self.trust, now=keys.AT)


def boot_log() -> EventLog:
    log = EventLog.parse(event_log()[0])
    return replace(log, events=tuple(event for event in log.events if event.index != 4))


def quote(report_data: bytes, log: EventLog | None = None) -> bytes:
    registers = (log or boot_log()).replay("sha384", ccel=True)
    rtmrs = tuple(registers.get(index, bytes(48)) for index in range(1, 5))
    return INTEL.quote(4, report_data=report_data, rtmrs=rtmrs)


INTEL_TRUST = TrustAnchors(intel_root=INTEL.root_key, collateral=(INTEL.collateral(),))


def sample(stack: ExitStack, path: Path) -> Bench:
    key = keys.ec_key("a development key")
    attester = SampleAttester(key, b"\1" * 32, clock=keys.AT.timestamp)
    return Bench(attester, TrustAnchors(sample_keys=frozenset({key_digest(key.public_key())})))


def tsm_tdx(stack: ExitStack, path: Path) -> Bench:
    (path / "CCEL").write_bytes(boot_log().to_bytes())
    kernel = tsm_kernel.TsmKernel(quote)
    attester = TsmAttester(path / "s", files=kernel, ccel=path / "CCEL", rtmr3=path / "none")
    return Bench(attester, INTEL_TRUST)


def tsm_snp(stack: ExitStack, path: Path) -> Bench:
    kernel = tsm_kernel.TsmKernel(
        lambda data: AMD.report(3, report_data=data), provider="sev_guest"
    )
    trust = TrustAnchors(
        amd_ark_keys=frozenset({AMD.root_key}), endorsements=(AMD.leaf(), AMD.authorities())
    )
    return Bench(TsmAttester(path / "s", files=kernel), trust)


def ccnp(stack: ExitStack, path: Path) -> Bench:
    folder = path / "uds"
    folder.mkdir(mode=0o755)
    server = ccnp_server.CcnpServer(
        socket=folder / "cima-server.sock",
        quote=quote,
        boot=boot_log(),
        containers={POD: [keys.stream("a file", 48)]},
    )
    stack.enter_context(server)
    measured = frozenset({boot_log().extending(2)[0].digests["sha384"]})
    trust = replace(INTEL_TRUST, container_servers=measured)
    return Bench(CcnpAttester(server.socket, container=POD), trust)


def coco(stack: ExitStack, path: Path) -> Bench:
    agent = stack.enter_context(coco_agent.CocoAgent(quote=quote, log=boot_log()))
    return Bench(CocoAttester(agent.address), INTEL_TRUST)


def tpm(stack: ExitStack, path: Path) -> Bench:
    if reason := SoftwareTpm.available():
        pytest.skip(reason)
    device = stack.enter_context(SoftwareTpm(path / "tpm"))
    attester = TpmAttester(path / "state", tcti=device.tcti, scope="job-1")
    import hashlib

    ak = hashlib.sha256(spki(attester.attestation_key.key)).digest()
    return Bench(attester, TrustAnchors(tpm_aks=frozenset({ak})))


MAKERS: dict[str, Callable[[ExitStack, Path], Bench]] = {
    "sample": sample,
    "tsm-tdx": tsm_tdx,
    "tsm-snp": tsm_snp,
    "ccnp": ccnp,
    "coco": coco,
    "tpm": tpm,
}


@pytest.fixture(
    params=[pytest.param(n, marks=pytest.mark.swtpm) if n == "tpm" else n for n in MAKERS]
)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield MAKERS[request.param](stack, tmp_path)


def test_its_evidence_verifies_with_what_was_measured(bench: Bench) -> None:
    bench.attester.extend("app", APP)
    bench.attester.extend("job", JOB)
    evidence = bench.attester.collect(binding())
    assert evidence.tee is bench.attester.tee
    claims = bench.claims(Evidence.from_bytes(evidence.to_bytes()))
    assert (claims.measurements["app"], claims.measurements["job"]) == (APP, JOB)
    assert not {"app", "job"} & {*claims.unverified}
    assert claims.bound is True


def test_its_evidence_is_good_for_nothing_else(bench: Bench) -> None:
    for changed in OTHER_BINDINGS.values():
        evidence = bench.attester.collect(binding(**changed))
        with pytest.raises(BindingError):
            bench.claims(evidence)


def test_a_claim_has_one_value(bench: Bench) -> None:
    bench.attester.extend("app", APP)
    with pytest.raises(AttesterError, match="measured"):
        bench.attester.extend("app", JOB)


@pytest.mark.parametrize("size", [0, 31, 33, 48])
def test_a_digest_of_another_size_is_refused(bench: Bench, size: int) -> None:
    with pytest.raises(AttesterError):
        bench.attester.extend("app", bytes(size))


@pytest.mark.parametrize("claim", ["pcr.4", "mrtd", "rtmr0", "launch", "kernel", "boot.1", "UP"])
def test_software_does_not_speak_for_hardware(bench: Bench, claim: str) -> None:
    if isinstance(bench.attester, SampleAttester):
        pytest.skip("a sample has no hardware to speak for: all of its claims are declared")
    with pytest.raises(AttesterError):
        bench.attester.extend(claim, APP)


def test_what_was_measured_cannot_be_left_out(bench: Bench) -> None:
    before = bench.attester.collect(binding())
    bench.attester.extend("app", APP)
    after = bench.attester.collect(binding())
    assert "app" not in bench.claims(before).measurements
    if not after.event_log:
        return  # what was measured stands in the signed statement itself
    with pytest.raises(AttestationError):
        bench.claims(replace(after, event_log=before.event_log or b"\0"))
    with pytest.raises(AttestationError):
        bench.claims(replace(before, event_log=after.event_log))
