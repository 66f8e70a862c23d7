"""Who tries to get at a job over the network, and is not let in."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from edge.protocol.identity import certification_request, new_key
from fedlearn.errors import AdmissionDenied, FedlearnError, KeyReleaseDenied, TransportError
from tests.fakes.misbehaving_client import HeldAdmission, MisbehavingClient, Stranger, self_made
from tests.harness.federation import FederationHarness, Job, descendants

pytestmark = pytest.mark.e2e
_LISTEN = "0A"


@pytest.fixture(scope="module")
def job(shared: FederationHarness) -> Iterator[Job]:
    """A job that waits for its only client."""
    made = shared.job("front", sites=["misbehaving"], data={}, deadline_s=600).submit()
    yield made
    shared.operator.cancel_job("front")


@pytest.fixture(scope="module")
def held(job: Job, misbehaving: MisbehavingClient) -> HeldAdmission:
    made = misbehaving.admit(job)
    assert made.fleet.activate()[0] == made.admitted.node_id
    return made


def _issue(
    shared: FederationHarness,
    key: ec.EllipticCurvePrivateKey,
    *,
    job: str = "front",
    now: datetime | None = None,
) -> Any:
    from cryptography import x509

    issued = shared.ca.issue_client(
        _der(key),
        job=job,
        site="misbehaving",
        client="c1",
        evidence_digest=bytes(32),
        policy_digest=bytes(32),
        now=now or datetime.now(UTC),
        lifetime=timedelta(minutes=10),
    )
    return tuple(x509.load_pem_x509_certificates(issued.chain_pem))


def _der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return certification_request(key)


def test_an_admitted_client_is_let_in(held: HeldAdmission) -> None:
    held.fleet.heartbeat()


def _refused(stranger: Stranger, status: int, match: str) -> None:
    for action in ("fetch", "deliver", "activate-node"):
        answer = stranger.post(f"/v1/fleet/{action}")
        assert answer.status_code == status, answer.text
        assert match in answer.text


def _no_connection(stranger: Stranger) -> None:
    with pytest.raises((httpx.HTTPError, ssl.SSLError)):
        stranger.post("/v1/fleet/fetch")


def test_without_a_certificate_there_is_no_connection(
    misbehaving: MisbehavingClient, held: HeldAdmission
) -> None:
    _no_connection(Stranger(held.admitted.fleet_address, misbehaving.ca))


def test_a_certificate_that_somebody_made_is_no_certificate(
    misbehaving: MisbehavingClient, held: HeldAdmission
) -> None:
    key = new_key()
    chain = (self_made(key),)
    address = held.admitted.fleet_address
    _no_connection(Stranger(address, misbehaving.ca, chain=chain, key=key))


def test_an_expired_certificate_of_our_own_ca_is_refused(
    shared: FederationHarness, misbehaving: MisbehavingClient, held: HeldAdmission
) -> None:
    key = new_key()
    chain = _issue(shared, key, now=datetime.now(UTC) - timedelta(hours=1))
    address = held.admitted.fleet_address
    _no_connection(Stranger(address, misbehaving.ca, chain=chain, key=key))


def test_a_certificate_of_our_ca_without_an_admission_is_refused(
    shared: FederationHarness, misbehaving: MisbehavingClient, held: HeldAdmission
) -> None:
    key = new_key()
    chain = _issue(shared, key)
    address = held.admitted.fleet_address
    _refused(Stranger(address, misbehaving.ca, chain=chain, key=key), 401, "never admitted")


def test_a_stolen_certificate_is_worth_nothing_without_its_key(
    misbehaving: MisbehavingClient, held: HeldAdmission
) -> None:
    # OpenSSL refuses to load the pair; a thief would need a library that does not look.
    with pytest.raises((ssl.SSLError, FedlearnError)):
        Stranger(held.admitted.fleet_address, misbehaving.ca, chain=held.chain, key=new_key())


def test_another_sites_certificate_does_not_speak_for_a_node(
    misbehaving: MisbehavingClient, held: HeldAdmission
) -> None:
    """The header that names the node must be the key of the certificate."""
    stranger = Stranger(
        held.admitted.fleet_address,
        misbehaving.ca,
        chain=held.chain,
        key=held.keys.tls,
        header_key=new_key(),
    )
    _refused(stranger, 401, "not the key of the certificate")


def test_a_sites_own_certificate_is_not_that_of_a_client(
    misbehaving: MisbehavingClient, held: HeldAdmission
) -> None:
    from cryptography import x509

    chain = tuple(x509.load_pem_x509_certificates(misbehaving.identity.chain))
    stranger = Stranger(
        held.admitted.fleet_address, misbehaving.ca, chain=chain, key=misbehaving.identity.key
    )
    _refused(stranger, 401, "")


def test_a_certificate_for_another_job_gets_nothing_of_this_one(
    shared: FederationHarness, misbehaving: MisbehavingClient, held: HeldAdmission
) -> None:
    other = shared.job("front-other", sites=["misbehaving"], data={}).submit()
    elsewhere = misbehaving.admit(other)
    try:
        node, run = elsewhere.fleet.activate()
        assert not {node, run} & set(held.fleet.activate())
        stranger = Stranger(
            held.admitted.fleet_address,
            misbehaving.ca,
            chain=elsewhere.chain,
            key=elsewhere.keys.tls,
        )
        # A request names no node: the certificate decides whose work is fetched and answered.
        answer = stranger.post("/v1/fleet/deliver", b"x" * 100)
        assert answer.status_code == 410
        assert "no question of this node" in answer.text
        with (
            elsewhere.control as control,
            pytest.raises(FedlearnError, match="the admission is for job front-other"),
        ):
            control.commit_data("front", root=bytes(32), records=1, examples=100)
    finally:
        shared.operator.cancel_job("front-other")
    # The job is over; its certificate is valid for half an hour, and opens nothing.
    _refused(stranger, 401, "")
    held.fleet.heartbeat()


def test_a_model_of_another_job_is_not_released(
    shared: FederationHarness, misbehaving: MisbehavingClient, held: HeldAdmission
) -> None:
    done = shared.run("front-sealed", rounds=1, sites=["site-a"])
    stored = shared.command(
        *("fedlearn", "model", "list", "--state", shared.state),
        *("--passphrase-file", shared.federation.passphrase_file, "--json"),
    ).stdout
    file = next(each for each in json.loads(stored)["models"] if each["model"] == done.name)
    with held.control as control, pytest.raises(KeyReleaseDenied) as denied:
        control.release_key(done.name, int(file["version"]), bytes.fromhex(file["file_id"]))
    assert "belongs to the job" in str(denied.value)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/list-runs",
        "/v1/runtime/acquire-task",
        "/v1/runtime/push-messages",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/get-fab",
        "/docs",
        "/",
    ],
)
def test_control_and_runtime_are_not_behind_the_front(
    misbehaving: MisbehavingClient, held: HeldAdmission, path: str
) -> None:
    stranger = Stranger(
        held.admitted.fleet_address, misbehaving.ca, chain=held.chain, key=held.keys.tls
    )
    assert stranger.post(path).status_code == 404


def _listening(pids: list[int]) -> set[str]:
    """The network addresses at which any of the processes can be reached."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for each in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    target = str(each.readlink())
                    if target.startswith("socket:["):
                        inodes.add(target[8:-1])
    found = set()
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and (fields[3] == _LISTEN or kind.startswith("udp")):
                host, _, port = fields[1].partition(":")
                found.add(f"{_host(host)}:{int(port, 16)}")
    return found


def _host(text: str) -> str:
    """An address as /proc writes it: words of the machine's byte order."""
    words = bytes.fromhex(text)
    data = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
    address = ipaddress.ip_address(data)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def test_nothing_else_listens_and_what_listens_serves_no_control(
    shared: FederationHarness, job: Job, held: HeldAdmission
) -> None:
    """Try Flower's Control and Runtime at every address that the coordinator can be reached at."""
    pids = [shared.server_pid(), *descendants(shared.server_pid())]
    assert shared.job_pid(job.name) in pids
    received = {
        held.admitted.fleet_address,
        held.admitted.control_address,
        held.gate.pinned.address,
    }
    assert _listening(pids) == received
    assert _listening([shared.job_pid(job.name)]) == set()
    insecure = ssl.create_default_context()
    insecure.check_hostname, insecure.verify_mode = False, ssl.CERT_NONE
    for address in sorted(received):
        for scheme in ("http", "https"):
            for path in ("/v1/control/list-runs", "/v1/runtime/acquire-task"):
                with (
                    httpx.Client(verify=insecure, trust_env=False, timeout=5) as client,
                    pytest.raises(httpx.HTTPError),
                ):
                    client.post(f"{scheme}://{address}{path}", content=b"")


def test_a_revoked_client_is_out_at_once(
    shared: FederationHarness, misbehaving: MisbehavingClient
) -> None:
    job = shared.job("front-revoked", sites=["misbehaving"], data={}).submit()
    held = misbehaving.admit(job)
    fleet = held.fleet
    fleet.activate()
    shared.operator.revoke_client(job.name, "misbehaving", "the test decided so")
    # The connection that it had is closed; a call on it may meet that before any answer.
    with contextlib.suppress(TransportError):
        with pytest.raises(AdmissionDenied, match="the test decided so"):
            fleet.heartbeat()
    with pytest.raises(AdmissionDenied, match="the test decided so"):
        fleet.heartbeat()
    shared.operator.cancel_job(job.name)
    assert "the test decided so" in job.ledger("revocation")[0]["reason"]
