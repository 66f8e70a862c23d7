"""What one source may write into the ledger and the events of a job, and that others still may."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from fedlearn.errors import AdmissionDenied, EnrollmentRefused, Throttled
from fedlearn.identity.join import JoinToken
from fedlearn.job.events import (
    ClientLost,
    JobFinished,
    Log,
    RoundFinished,
    RoundStarted,
    UpdateReceived,
)
from fedlearn.wire import fedlearn_pb2 as pb
from fedlearn.wire import fedlearn_pb2_grpc as rpc
from fedlearn.wire.channel import open_channel
from server.admission.events import what_causes
from server.admission.registry import AdmissionRegistry
from server.health import Health
from server.jobs.active_jobs import OpenJobs
from server.jobs.job_channel import JobChannelHandler
from server.jobs.job_events import JobEvents
from server.jobs.records import event_store
from server.jobs.records.history import JobHistory
from server.jobs.records.job_store import JobStore
from server.ledger import Ledger
from server.quota import Quota
from tests.harness.deployment import Deployment, key_pem, new_csr, new_key
from tests.harness.listeners import DeploymentListeners


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_source_has_a_burst_then_a_rate_and_what_is_left_out_is_counted() -> None:
    clock = Clock()
    quota = Quota(burst=3, every=10.0, clock=clock)
    assert [quota.take("a") for _ in range(5)] == [0, 0, 0, None, None]
    assert quota.take("b") == 0, "another source has a burst of its own"
    clock.now = 10.0
    assert quota.take("a") == 2
    assert quota.take("a") is None
    assert quota.settle() == {}
    clock.now = 25.0
    assert quota.settle() == {"a": 1}
    assert quota.settle() == {}


def test_a_heavy_entry_counts_for_several() -> None:
    clock = Clock()
    quota = Quota(burst=10, every=1.0, clock=clock)
    assert quota.take("a", weight=8) == 0
    assert quota.take("a", weight=3) is None
    assert quota.take("a", weight=2) == 1
    clock.now = 10.0
    assert quota.take("a", weight=1000) == 0, "as much as a burst, and no more"
    assert quota.take("a") is None


def test_long_lines_of_an_app_count_for_several(book: JobStore, job_events: JobEvents) -> None:
    for _ in range(3000):
        job_events.report("demo", Log(line="x" * 4000))
    kept = sum(len(event.body) for event in book.events.page("demo", most=10_000))
    assert kept < 2 * 1024 * 1024


def test_only_so_many_sources_are_distinguished() -> None:
    quota = Quota(burst=1, every=10.0, sources=100, clock=Clock())
    for number in range(10_000):
        quota.take(f"source {number}")
    assert len(quota._sources) == 100


def test_refused_enrollments_of_one_address_are_few_entries(deployment: Deployment) -> None:
    sites = deployment.sites
    clock = Clock()
    sites._records._refusals = Quota(burst=16, every=10.0, clock=clock)
    csr = new_csr(new_key())
    before = deployment.kinds().count("enrollment")

    def forged(site: str) -> str:
        token = JoinToken.fresh(address="127.0.0.1:1", site=site, ca_pin=deployment.ca.key_digest)
        return token.encode()

    for number in range(300):
        with pytest.raises(EnrollmentRefused):
            sites.invitations.enroll(forged(f"site-{number}"), csr, peer="192.0.2.1")
    assert deployment.kinds().count("enrollment") - before == 16
    with pytest.raises(EnrollmentRefused):
        sites.invitations.enroll(forged("other"), csr, peer="192.0.2.2")
    assert deployment.last("enrollment")["peer"] == "192.0.2.2"
    clock.now = 60.0
    sites.settle()
    given = deployment.last("enrollment")
    assert (given["outcome"], given["left_out"]) == ("refused", 284)
    assert "284 more of address 192.0.2.1" in given["reason"]


def test_refused_admissions_and_challenges_of_one_address_are_few_entries(
    deployment: Deployment,
) -> None:
    gate = deployment.gate
    clock = Clock()
    many: Any = SimpleNamespace(take=lambda *_, **__: None)
    gate._rates = gate._attempts = many
    ledger = gate._ledger
    ledger._quotas = {kind: Quota(burst=8, every=1.0, clock=clock) for kind in ledger._quotas}
    client = deployment.client(measurements={"app": bytes(32), "job": bytes(32)})
    for _ in range(40):
        with pytest.raises(AdmissionDenied):
            gate.admit(deployment.request(client), peer="ip:test")
    assert deployment.kinds().count("refusal") == deployment.kinds().count("challenge") == 8
    clock.now = 5.0
    gate.sweep()
    assert [body["left_out"] for _, body in deployment.entries[-2:]] == [32, 32]
    with pytest.raises(AdmissionDenied):
        gate.admit(deployment.request(client), peer="ip:test")
    assert "left_out" not in deployment.last("refusal")


def test_a_client_attests_again_and_begins_anew_only_so_often(deployment: Deployment) -> None:
    client = deployment.client()
    current = deployment.admit(client).admission
    for _ in range(16):
        request = deployment.request(client, site_voucher=b"")
        current = deployment.gate.renew(request, current, peer="ip:test").admission
    request = deployment.request(client, site_voucher=b"")
    with pytest.raises(Throttled):
        deployment.gate.renew(request, current, peer="ip:test")
    assert deployment.kinds().count("renewal") == 16
    assert deployment.registry.live(current.thumbprint, now=deployment.clock())
    for _ in range(15):
        deployment.admit(deployment.client())
    with pytest.raises(AdmissionDenied, match="too often"):
        deployment.admit(deployment.client())
    assert deployment.kinds().count("admission") == 16
    # Another site notices nothing.
    deployment.admit(deployment.client(site="site-b"))


@pytest.fixture
def site(listeners: DeploymentListeners, deployment: Deployment) -> Iterator[rpc.SitesStub]:
    key = deployment.site_keys["site-a"]
    issued = deployment.ca.issue_site(new_csr(key), site="site-a", now=deployment.clock())
    with open_channel(
        listeners.control,
        roots=deployment.ca.certificate_pem,
        chain=issued.chain_pem,
        key=key_pem(key),
    ) as channel:
        yield rpc.SitesStub(channel)


def test_a_site_that_reports_without_end_is_read_slowly_and_repeats_are_no_news(
    listeners: DeploymentListeners, site: rpc.SitesStub
) -> None:
    hold = threading.Event()

    def reports() -> Iterator[Any]:
        yield pb.SiteReport(hello=pb.Hello(version="1"))
        for _ in range(200):
            status = pb.WorkloadStatus(assignment="a-1", phase="starting", reason="the same")
            yield pb.SiteReport(workload=status)
        for number in range(3000):
            status = pb.WorkloadStatus(assignment="a-1", phase="starting", reason=f"{number}")
            yield pb.SiteReport(workload=status)
        hold.wait(20)

    call = site.Follow(reports())
    time.sleep(2.0)
    given = [what for kind, what in listeners.coordinator.calls if kind == "workload"]
    assert given[0] == ("site-a", "a-1", "starting", "the same")
    assert given[1] == ("site-a", "a-1", "starting", "0")
    # 256 at once, 200 of which were repeats, and 4 a second.
    assert 40 < len(given) < 120
    hold.set()
    call.cancel()
    with pytest.raises(grpc.RpcError):
        list(call)


def test_the_same_commitment_is_entered_once(tmp_path: Path) -> None:
    key = new_key()
    with Ledger.open(tmp_path / "ledger.sqlite", key) as ledger:
        spec: Any = SimpleNamespace(
            name="demo", privacy=None, strategy=SimpleNamespace(name="fedavg")
        )
        handler = JobChannelHandler(
            spec,
            store=None,  # type: ignore[arg-type]
            ledger=ledger,
            registry=AdmissionRegistry(),
            report=lambda event: None,
            keep=2,
        )

        def commit(thumbprint: bytes = b"1" * 32) -> int:
            admission: Any = SimpleNamespace(site="site-a", thumbprint=thumbprint)
            return handler.commit(admission, root=b"r" * 32, records=5, examples=5)

        assert {commit() for _ in range(50)} == {1}
        assert commit(thumbprint=b"2" * 32) == 1, "the same data with another key"
        assert len(list(ledger.entries(kind="commitment"))) == 1


@pytest.fixture
def book(tmp_path: Path) -> Iterator[JobStore]:
    key = new_key()
    with Ledger.open(tmp_path / "ledger.sqlite", key) as ledger:
        made = JobStore(tmp_path, key=bytes(32), history=JobHistory(ledger))
        yield made
        made.close()


@pytest.fixture
def job_events(book: JobStore) -> JobEvents:
    return JobEvents(book, jobs=OpenJobs(), clock=lambda: datetime.now(UTC), health=Health())


def test_one_sites_flood_leaves_the_events_of_a_job_to_the_others(
    book: JobStore, job_events: JobEvents
) -> None:
    for number in range(3000):
        job_events.report("demo", ClientLost(site="loud", reason=f"{number}"))
        job_events.report("demo", Log(line=f"{number}"))
    for number in range(20):
        job_events.report("demo", ClientLost(site="calm", reason=f"{number}"))
        started = RoundStarted(round=number + 1, rounds=20, sites=("calm", "loud"))
        job_events.report("demo", started)
    events = book.events.page("demo", most=10_000)
    by_cause: dict[str, int] = {}
    for event in events:
        key = "loud" if '"site":"loud"' in event.body else event.kind
        by_cause[key] = by_cause.get(key, 0) + 1
    assert by_cause["loud"] < 520
    assert by_cause["log"] < 2200
    assert by_cause["client.lost"] == 20
    assert by_cause["round.started"] == 20


def test_what_was_left_out_is_reported(book: JobStore, job_events: JobEvents) -> None:
    clock = Clock()
    job_events._quotas[True] = Quota(burst=2, every=1.0, clock=clock)
    for number in range(10):
        job_events.report("demo", ClientLost(site="loud", reason=f"{number}"))
    clock.now = 1.0
    job_events.report("demo", ClientLost(site="loud", reason="again"))
    bodies = [event.body for event in book.events.page("demo")]
    assert len(bodies) == 4
    assert "8 more events of this site were left out" in bodies[2]
    assert "again" in bodies[3]


def test_a_book_that_is_full_of_one_sites_events_keeps_the_rounds(
    book: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_store, "MAX_EVENTS", 50)
    now = datetime.now(UTC)
    for number in range(60):
        book.events.add("demo", ClientLost(site="loud", reason=f"{number}"), at=now)
    for number in range(60):
        book.events.add("demo", RoundStarted(round=number + 1, rounds=60, sites=("loud",)), at=now)
    book.events.add("demo", JobFinished(model="demo", seconds=1.0, metrics={}), at=now)
    kinds = [event.kind for event in book.events.page("demo")]
    assert kinds.count("client.lost") == 50
    assert kinds.count("round.started") == 50
    assert kinds[-1] == "job.finished"


def test_the_rounds_are_nobodys_doing() -> None:
    assert what_causes(ClientLost(site="a", reason="")) == "a"
    assert what_causes(Log(line="x", site="a")) == "a"
    assert what_causes(Log(line="x")) == ""
    finished = RoundFinished(round=1, rounds=2, seconds=1.0, sites=2, bytes=3, metrics={})
    received = UpdateReceived(round=1, site="a", bytes=3, examples=2, metrics={})
    assert what_causes(finished) is what_causes(received) is None
