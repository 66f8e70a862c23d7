"""Attesters for hardware that is not here, against fakes that speak the real protocols."""

from __future__ import annotations

import errno
import struct
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attestation.attesters import azure, ccnp, coco, hardware, tpm, tsm
from attestation.attesters.ccnp import CcnpAttester, check_socket, container_id
from attestation.attesters.coco import CocoAttester
from attestation.attesters.hardware import detect, open_hardware
from attestation.attesters.kinds import KINDS, Options
from attestation.attesters.tsm import ConfigFs, TsmAttester
from attestation.errors import AttesterError, BindingError, EventLogError
from attestation.evidence import Claims, Evidence, Tee
from attestation.logs.accumulator import CONTAINER
from attestation.logs.eventlog import EventLog
from attestation.policy.appraise import appraise
from attestation.policy.model import AppraisalPolicy, ReferenceValue
from attestation.policy.result import Tier
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from tests.fakes import ccnp_server, coco_agent, tsm_kernel
from tests.vectors import keys
from tests.vectors.amd import Amd
from tests.vectors.cases import binding
from tests.vectors.intel import APP, JOB, Intel, event_log

ROOT = Path(__file__).parents[3]
POD = "3f2a1b4c_0d1e_4f5a_8b9c_0123456789ab"
INTEL = Intel()


def boot_log() -> EventLog:
    """Return the firmware's part of the log of the test vectors."""
    log = EventLog.parse(event_log()[0])
    events = tuple(event for event in log.events if event.index != 4)
    return replace(log, events=events)


def rtmrs(log: EventLog) -> tuple[bytes, ...]:
    registers = log.replay("sha384", ccel=True)
    return tuple(registers.get(index, bytes(48)) for index in range(1, 5))


def quote(report_data: bytes, log: EventLog | None = None) -> bytes:
    return INTEL.quote(4, report_data=report_data, rtmrs=rtmrs(log or boot_log()))


def judged(evidence: Evidence, **trust: Any) -> Claims:
    anchors = TrustAnchors(intel_root=INTEL.root_key, collateral=(INTEL.collateral(),), **trust)
    return verify(evidence, binding=binding(), trust=anchors, now=keys.AT)


@pytest.fixture
def ccel(tmp_path: Path) -> Path:
    path = tmp_path / "CCEL"
    path.write_bytes(boot_log().to_bytes() + b"\xff" * 512)
    return path


def test_tsm_makes_evidence_of_a_domain(tmp_path: Path, ccel: Path) -> None:
    kernel = tsm_kernel.TsmKernel(quote)
    attester = TsmAttester(tmp_path / "s", files=kernel, ccel=ccel, rtmr3=tmp_path / "none")
    assert attester.tee is Tee.TDX
    attester.extend("app", APP)
    attester.extend("app", APP)
    attester.extend("job", JOB)
    claims = judged(attester.collect(binding()))
    assert (claims.measurements["app"], claims.measurements["job"]) == (APP, JOB)
    assert not claims.unverified
    assert "firmware" in claims.measurements
    assert not kernel.entries
    with pytest.raises(AttesterError, match="already measured"):
        attester.extend("app", JOB)


def test_what_a_software_register_states_must_be_covered(tmp_path: Path, ccel: Path) -> None:
    kernel = tsm_kernel.TsmKernel(quote)
    attester = TsmAttester(tmp_path / "s", files=kernel, ccel=ccel, rtmr3=tmp_path / "none")
    attester.extend("app", APP)
    honest = attester.collect(binding())
    attester.extend("job", JOB)
    longer = attester.collect(binding())
    with pytest.raises(BindingError, match="software registers"):
        judged(replace(honest, event_log=longer.event_log))
    with pytest.raises(BindingError):
        judged(replace(longer, event_log=honest.event_log))


def test_tsm_measures_into_rtmr3_where_the_kernel_offers_it(
    tmp_path: Path, ccel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    register = tmp_path / "rtmr3"
    register.write_bytes(bytes(48))

    def extend(path: Path, digest: bytes) -> None:
        path.write_bytes(hashlib.sha384(path.read_bytes() + digest).digest())

    monkeypatch.setattr(TsmAttester, "_write", staticmethod(extend))

    def quoted(report_data: bytes) -> bytes:
        registers = (*rtmrs(boot_log())[:3], register.read_bytes())
        return INTEL.quote(4, report_data=report_data, rtmrs=registers)

    kernel = tsm_kernel.TsmKernel(quoted)
    attester = TsmAttester(tmp_path / "s", files=kernel, ccel=ccel, rtmr3=register)
    attester.extend("app", APP)
    attester.extend("job", JOB)
    attester.extend("job", JOB)
    claims = judged(attester.collect(binding()))
    assert claims.measurements["rtmr3"] == register.read_bytes()
    assert (claims.measurements["app"], claims.measurements["job"]) == (APP, JOB)
    with pytest.raises(AttesterError, match="already measured"):
        attester.extend("app", JOB)
    extend(register, bytes(48))
    with pytest.raises(AttesterError, match="extended by something"):
        attester.collect(binding())


def test_tsm_makes_evidence_of_a_guest_with_its_certificates(tmp_path: Path) -> None:
    amd = Amd(product="Genoa")
    leaf = amd.leaf()
    vcek = uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd").bytes
    other = struct.pack("<16sII", b"v" * 16, 72, 4)  # of a kind that is no certificate
    table = other + struct.pack("<16sII", vcek, 72, len(leaf)) + bytes(24) + leaf
    kernel = tsm_kernel.TsmKernel(
        lambda data: amd.report(3, report_data=data), provider="sev_guest", auxblob=table
    )
    attester = TsmAttester(tmp_path / "s", files=kernel, ccel=tmp_path / "none")
    assert attester.tee is Tee.SNP
    attester.extend("app", APP)
    evidence = attester.collect(binding())
    assert evidence.endorsements == (leaf,)
    trust = TrustAnchors(amd_ark_keys=frozenset({amd.root_key}), endorsements=(amd.authorities(),))
    claims = verify(evidence, binding=binding(), trust=trust, now=keys.AT)
    assert claims.measurements["app"] == APP
    assert not claims.unverified


def test_a_report_for_somebody_else_is_asked_for_again(tmp_path: Path, ccel: Path) -> None:
    kernel = tsm_kernel.TsmKernel(quote)
    attester = TsmAttester(tmp_path / "s", files=kernel, ccel=ccel, rtmr3=tmp_path / "none")
    kernel.disturb, before = 2, kernel.made
    assert judged(attester.collect(binding())).bound is True
    assert kernel.made == before + 3
    kernel.disturb = 100
    with pytest.raises(AttesterError, match="kept changing"):
        attester.collect(binding())
    assert not kernel.entries


def test_an_unknown_provider_is_refused(tmp_path: Path) -> None:
    kernel = tsm_kernel.TsmKernel(quote, provider="arm_cca_guest")
    with pytest.raises(AttesterError, match="arm_cca_guest"):
        TsmAttester(tmp_path / "s", files=kernel)


def test_configfs_that_is_not_there_states_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AttesterError, match="configfs-tsm") as refused:
        TsmAttester(tmp_path / "s", files=ConfigFs(tmp_path / "missing"))
    assert "6.7" in refused.value.hint


def test_configfs_reads_writes_and_removes(tmp_path: Path) -> None:
    files = ConfigFs(tmp_path)
    name = files.make()
    with pytest.raises(OSError) as missing:
        files.write(name, "inblob", b"x")
    assert missing.value.errno == errno.ENOENT
    (tmp_path / name / "inblob").touch()
    files.write(name, "inblob", b"data")
    assert files.read(name, "inblob") == b"data"
    (tmp_path / name / "inblob").unlink()
    files.remove(name)
    assert not list(tmp_path.iterdir())


FILES = [keys.stream(f"container file {number}", 48) for number in range(3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "uds"
    path.mkdir(mode=0o755)
    return path


def ccnp_in(folder: Path, service: str = "cima", **how: Any) -> Any:
    return ccnp_server.CcnpServer(
        socket=folder / f"{service}-server.sock",
        quote=quote,
        boot=boot_log(),
        containers={POD: FILES},
        service=service,
        **how,
    )


BOOTED = rtmrs(boot_log())
SERVER = boot_log().extending(2)[0].digests["sha384"]


@pytest.mark.parametrize("service", ["cima", "ccnp"])
def test_a_container_counts_under_a_measured_server(folder: Path, service: str) -> None:
    with ccnp_in(folder, service) as server:
        attester = CcnpAttester(server.socket, container=POD)
        attester.extend("app", APP)
        evidence = attester.collect(binding())
        register = server.register(POD)
        [request] = server.seen
    assert request.container_id == POD
    claims = judged(evidence, container_servers=frozenset({SERVER}))
    assert claims.measurements["container.imr"] == register
    assert claims.measurements["app"] == APP
    assert not claims.unverified
    # Without a server that is known to be measured, the register is only claimed.
    unknown = judged(evidence)
    assert unknown.unverified == ("container.imr",)


def container_policy(server: bytes | None, **window: Any) -> AppraisalPolicy:
    """Return a policy that names the container's register, and who may keep it."""
    started = {"mrtd": keys.stream("mrtd", 48), "rtmr1": BOOTED[1], "rtmr2": BOOTED[2]}
    references = [ReferenceValue(claim=name, value=value) for name, value in started.items()]
    references.append(ReferenceValue(claim="event", value=bytes(48), name="demands nothing"))
    if server is not None:
        reference = ReferenceValue(claim="container.server", value=server, **window)
        references.append(reference)
    return AppraisalPolicy(
        accept=(Tee.TDX,), references=tuple(references), require=("container.imr", "app")
    )


@pytest.mark.parametrize(
    ("server", "window", "refused"),
    [
        (SERVER, {}, set()),
        (SERVER, {"not_before": keys.AT, "not_after": keys.END}, set()),
        (SERVER, {"not_after": keys.AT}, {"require.container.imr", "container.server"}),
        (SERVER, {"tee": Tee.SNP}, {"require.container.imr"}),
        (bytes(48), {}, {"require.container.imr", "container.server"}),
        (None, {}, {"require.container.imr"}),
    ],
)
def test_the_policy_states_whose_containers_count(
    folder: Path, server: bytes | None, window: dict[str, Any], refused: set[str]
) -> None:
    policy = container_policy(server, **window)
    with ccnp_in(folder) as running:
        attester = CcnpAttester(running.socket, container=POD)
        attester.extend("app", APP)
        evidence = attester.collect(binding())
    anchors = TrustAnchors(intel_root=INTEL.root_key, collateral=(INTEL.collateral(),))
    trust = policy.anchors_for(anchors, tee=Tee.TDX, now=keys.AT)
    claims = verify(evidence, binding=binding(), trust=trust, now=keys.AT)
    assert ("container.server" in claims.measurements) == (not refused)
    result = appraise(policy, claims, now=keys.AT)
    assert {finding.claim for finding in result.refusals} == refused
    assert (result.status is Tier.AFFIRMING) == (not refused)


def test_a_policy_points_at_the_first_event_that_it_does_not_know() -> None:
    log = boot_log()
    known = [event.digests["sha384"] for event in log.events]
    longer = log.append(2, 6, {"sha384": bytes(48)}, b"another event").append(
        2, 6, {"sha384": known[0]}, b"the last"
    )
    policy = AppraisalPolicy(
        references=tuple(ReferenceValue(claim="event", value=digest) for digest in known)
    )
    anchors = TrustAnchors(intel_root=INTEL.root_key, collateral=(INTEL.collateral(),))
    trust = policy.anchors_for(anchors, tee=Tee.TDX, now=keys.AT)
    evidence = Evidence(tee=Tee.TDX, quote=quote(bytes(64)), event_log=longer.to_bytes())
    with pytest.raises(EventLogError, match=f"event {len(known) + 1} is the first that no ref"):
        verify(evidence, binding=None, trust=trust, now=keys.AT)


def test_a_container_that_is_merely_claimed_is_refused(folder: Path) -> None:
    with ccnp_in(folder) as server:
        evidence = CcnpAttester(server.socket, container=POD).collect(binding())
    trusted = frozenset({SERVER})
    log = EventLog.parse(evidence.event_log)
    for events in (
        [event for event in log.events if event.index != CONTAINER],
        [event for event in log.events if event.data != b"file 1"],
        [*log.events, log.extending(CONTAINER)[0]],
    ):
        edited = log.header + b"".join(event.to_bytes() for event in events)
        with pytest.raises((BindingError, EventLogError)):
            judged(replace(evidence, event_log=edited), container_servers=trusted)
    with ccnp_in(folder, claim_only=True) as liar:
        attester = CcnpAttester(liar.socket, container=POD)
        with pytest.raises(AttesterError, match="not over our nonce"):
            attester.collect(binding())


def test_a_server_that_does_not_isolate_gives_the_whole_log(folder: Path) -> None:
    with ccnp_in(folder, isolated=False) as server:
        attester = CcnpAttester(server.socket, container=POD)
        claims = judged(attester.collect(binding()))
    assert "container.imr" not in claims.measurements
    assert {"cmdline", "initrd"} <= claims.measurements.keys()


@pytest.mark.parametrize(
    ("method", "answer", "reason"),
    [
        ("GetCcReport", b"\xff" * 11, "malformed"),
        ("GetCcReport", b"\x12\x05ab", "malformed"),
        ("GetCcReport", b"", "of type 0, not TDX"),
        ("GetCcReport", b"\x08\x02", "of type 2, not TDX"),
        ("GetCcReport", b"\x08\x01\x12\x02ab", "cannot be read"),
        ("GetCcEventlog", b"\x0a\x03\x32\x05a", "malformed"),
        ("GetCcEventlog", b"\x0a\x00" * (16 * 1024 + 1), "sent 16385 events; at most 16384"),
    ],
)
def test_an_answer_that_is_no_message_or_not_ours_is_refused(
    folder: Path, method: str, answer: bytes, reason: str
) -> None:
    with ccnp_in(folder, raw={method: answer}) as server:
        attester = CcnpAttester(server.socket, container=POD)
        with pytest.raises(AttesterError, match=reason):
            attester.collect(binding())


def test_a_caller_claimed_container_is_not_known_to_the_server(folder: Path) -> None:
    with ccnp_in(folder) as server:
        attester = CcnpAttester(server.socket, container="0" * 64)
        with pytest.raises(AttesterError, match="UNKNOWN"):
            attester.collect(binding())


def test_a_socket_that_others_could_replace_is_not_used(folder: Path) -> None:
    with ccnp_in(folder) as server:
        check_socket(server.socket)
        folder.chmod(0o777)
        with pytest.raises(AttesterError, match="written by others"):
            CcnpAttester(server.socket, container=POD)
        folder.chmod(0o755)
    plain = folder / "plain"
    plain.touch()
    with pytest.raises(AttesterError, match="not a socket"):
        check_socket(plain)
    with pytest.raises(AttesterError, match="no such file"):
        check_socket(folder / "missing")


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("mountinfo", f"1 2 0:1 /var/lib/docker/containers/{'a' * 64}/hosts /etc/hosts", "a" * 64),
        (
            "mountinfo",
            "1 2 0:1 /var/lib/kubelet/pods/3f2a1b4c-0d1e-4f5a-8b9c-0123456789ab/x /etc/hosts",
            POD,
        ),
        ("cgroup", f"0::/system.slice/docker-{'b' * 64}.scope\n", "b" * 64),
        ("cgroup", f"0::/kubepods/burstable/podabc/{'c' * 64}\n", "c" * 64),
    ],
)
def test_the_container_is_found_in_proc(tmp_path: Path, name: str, text: str, found: str) -> None:
    (tmp_path / name).write_text(text)
    assert container_id(tmp_path) == found


def test_no_container_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/user.slice\n")
    with pytest.raises(AttesterError, match="in no container"):
        container_id(tmp_path)


@pytest.fixture
def agent() -> Iterator[coco_agent.CocoAgent]:
    with coco_agent.CocoAgent(quote=quote, log=boot_log()) as running:
        yield running


def test_the_agent_measures_into_rtmr3(agent: coco_agent.CocoAgent) -> None:
    attester = CocoAttester(agent.address)
    attester.extend("app", APP)
    attester.extend("job", JOB)
    claims = judged(attester.collect(binding()))
    assert (claims.measurements["app"], claims.measurements["job"]) == (APP, JOB)
    assert any(claims.measurements["rtmr3"])
    assert all(len(text) == 64 for text in agent.asked)


def test_an_agent_without_a_register_leaves_it_to_us(agent: coco_agent.CocoAgent) -> None:
    agent.aael = False
    attester = CocoAttester(agent.address)
    attester.extend("app", APP)
    claims = judged(attester.collect(binding()))
    assert claims.measurements["app"] == APP
    assert not any(claims.measurements["rtmr3"])


def test_an_agent_that_forgets_a_measurement_is_noticed(agent: coco_agent.CocoAgent) -> None:
    agent.forget = True
    attester = CocoAttester(agent.address)
    attester.extend("app", APP)
    with pytest.raises(AttesterError, match="does not have app"):
        attester.collect(binding())


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (b"not json", "not JSON"),
        (b"[]", "not an object"),
        (b'{"attestation_report": {}}', "not a quote"),
        (b'{"hcl_report": "", "tpm_quote": {}}', "Azure"),
        (b'{"quote": 1}', "not text"),
        (b'{"quote": "@"}', "not base64"),
        (b'{"quote": "", "cc_eventlog": "AAAA"}', "log"),
    ],
)
def test_other_answers_of_an_agent_are_errors(
    agent: coco_agent.CocoAgent, answer: bytes, word: str
) -> None:
    agent.answer = answer
    with pytest.raises(AttesterError, match=word):
        CocoAttester(agent.address)


def test_an_agent_that_fails_or_is_remote_is_an_error(agent: coco_agent.CocoAgent) -> None:
    agent.status = 500
    with pytest.raises(AttesterError, match="500"):
        CocoAttester(agent.address)
    with pytest.raises(AttesterError, match="loopback"):
        CocoAttester("192.0.2.1:8006")
    with pytest.raises(AttesterError, match="does not answer"):
        CocoAttester("127.0.0.1:1")


def test_detection_states_why(tmp_path: Path, agent: coco_agent.CocoAgent) -> None:
    assert [found.kind for found in detect()] == [kind.name for kind in KINDS]
    nothing = (
        tsm.find(tmp_path / "none"),
        ccnp.find(()),
        coco.find("127.0.0.1:1"),
        azure.find(tmp_path / "none", ()),
        tpm.find(()),
    )
    assert [found.kind for found in nothing] == [kind.name for kind in KINDS]
    assert all(not found.present and found.why for found in nothing)
    tag = tmp_path / "tag"
    tag.write_text("7783-7084-3265-9085-8269-3286-77\n")
    assert "without a vTPM" in azure.find(tag, ()).why
    device = tmp_path / "tpmrm0"
    device.touch()
    everything = (
        tsm.find(tmp_path),
        ccnp.find((device,)),
        coco.find(agent.address),
        azure.find(tag, (device,)),
        tpm.find((device,)),
    )
    assert all(found.present and found.why for found in everything)


def test_auto_takes_the_strongest_that_works_and_states_why(
    tmp_path: Path, agent: coco_agent.CocoAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = (
        tsm.find(tmp_path / "none"),
        ccnp.find((tmp_path,)),
        coco.find(agent.address),
        azure.find(tmp_path / "none", ()),
        tpm.find(()),
    )
    monkeypatch.setattr(hardware, "detect", lambda: found)
    monkeypatch.setattr(coco, "DEFAULT_ADDRESS", agent.address)
    reported: list[str] = []
    options = Options(state=tmp_path)
    attester = open_hardware("auto", options, report=reported.append)
    assert attester.tee is Tee.TDX
    assert "attesting with coco" in reported[0]
    assert "not tsm" in reported[0]
    agent.status = 500
    with pytest.raises(AttesterError, match="nothing here can attest") as refused:
        open_hardware("auto", options)
    assert all(kind.name in str(refused.value) for kind in KINDS)
    assert "insecure" in refused.value.hint
    with pytest.raises(AttesterError, match="none of"):
        open_hardware("magic", options)
