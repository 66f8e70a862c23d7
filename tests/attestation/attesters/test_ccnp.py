"""Evidence of containers through a CCNP or CIMA server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attestation.attesters.ccnp import CcnpAttester, check_socket, container_id
from attestation.errors import AttesterError, BindingError, EventLogError
from attestation.evidence import Evidence, Tee
from attestation.logs.accumulator import CONTAINER
from attestation.logs.eventlog import EventLog
from attestation.policy.appraise import appraise
from attestation.policy.model import AppraisalPolicy, ReferenceValue
from attestation.policy.result import Tier
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from tests.fakes import ccnp_server
from tests.vectors import keys
from tests.vectors.cases import binding
from tests.vectors.domain import INTEL, boot_log, judged, quote, rtmrs
from tests.vectors.intel import APP

POD = "3f2a1b4c_0d1e_4f5a_8b9c_0123456789ab"


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
