"""What the coordinator takes from a job, and what it compares before it believes any of it."""

from __future__ import annotations

import dataclasses
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.policy.result import AttestationResult, Tier
from fedlearn.errors import AdmissionDenied, DiskError, JobError, PrivacyError, UpdateRejected
from fedlearn.job.events import Event
from fedlearn.privacy import PrivacySpec
from fedlearn.privacy.accountant import rounds_within
from fedlearn.sandbox.memory_file import FilePart, MemoryFile, same_bytes
from fedlearn.update.arrays import document, encode
from server.admission.registry import Admission, AdmissionRegistry
from server.flower.application.app_files import as_files
from server.flower.job_plan import MAX_EVENTS, Checkpoint
from server.jobs.job_channel import JobChannelHandler
from server.keys.key_protectors import RecoveryKey
from server.keys.service import KeyService
from server.ledger import Ledger
from server.store.models import ModelStore
from server.store.rollback import written_versions
from tests.harness.deployment import new_key

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
SPEC = PrivacySpec(clip=1.0, noise_multiplier=1.0, epsilon=20.0, delta=1e-5)
SITES = ("site-a", "site-b")


class Parts:
    """A ledger, a store and a register that outlive a handler, as they do in a coordinator."""

    def __init__(self, folder: Path, key: ec.EllipticCurvePrivateKey) -> None:
        self.ledger = Ledger.open(folder / "ledger.sqlite", key)
        keys = KeyService.create(folder / "keys", [RecoveryKey.of(X25519PrivateKey.generate())])

        def enter(kind: str, body: Mapping[str, Any]) -> object:
            return self.ledger.append(kind, body)

        self.store = ModelStore.open(folder / "store", keys, record=enter)
        self.registry = AdmissionRegistry()
        self.reported: list[Event] = []

    def close(self) -> None:
        self.store.close()
        self.ledger.close()

    def bodies(self, kind: str) -> list[dict[str, Any]]:
        return [dict(entry.body) for entry in self.ledger.entries(kind=kind)]


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    made = Parts(tmp_path, new_key())
    yield made
    made.close()


def handler(
    parts: Parts,
    *,
    privacy: PrivacySpec | None = None,
    job: str = "demo",
    strategy: str = "app",
) -> JobChannelHandler:
    spec: Any = SimpleNamespace(
        name=job,
        privacy=privacy,
        sites=SITES,
        rounds=3,
        owner_public_key=lambda: None,
        strategy=SimpleNamespace(name=strategy),
    )
    return JobChannelHandler(
        spec,
        store=parts.store,
        ledger=parts.ledger,
        registry=parts.registry,
        report=lambda *events: parts.reported.extend(events),
        keep=2,
        clock=lambda: NOW,
    )


def admitted(parts: Parts, site: str = "site-a", job: str = "demo") -> Admission:
    thumbprint = site.encode().ljust(32, b"\0")
    result = AttestationResult(
        status=Tier.AFFIRMING,
        tee="sample",
        findings=(),
        policy=bytes(32),
        key_thumbprint=thumbprint,
        expires=NOW + timedelta(minutes=30),
    )
    admission = Admission(
        job=job,
        site=site,
        client="c1",
        thumbprint=thumbprint,
        tls_key=b"key of " + site.encode(),
        hpke_key=bytes(32),
        serial=1,
        node_id=1,
        result=result,
        issued=NOW,
        expires=NOW + timedelta(minutes=30),
        evidence_digest=bytes(32),
        policy_digest=bytes(32),
    )
    parts.registry.add(admission, now=NOW)
    return admission


def begin(job: JobChannelHandler, number: int = 1, sites: tuple[str, ...] = SITES) -> None:
    job.event("round.started", {"round": number, "rounds": 3, "sites": list(sites)})


def update(number: int = 1, site: str = "site-a", **more: Any) -> dict[str, Any]:
    fields = {"round": number, "site": site, "bytes": 10, "examples": 5, "metrics": {}}
    return {**fields, "digest": "ab" * 32, "key": site.encode().ljust(32, b"\0").hex(), **more}


def save(job: JobChannelHandler, number: int = 1, value: float = 1.0) -> None:
    job.save_checkpoint(checkpoint(number, value))
    job.settle()


def checkpoint(number: int = 1, value: float = 1.0, **more: Any) -> Checkpoint:
    model = encode({"w": np.full(4, value, np.float32)})
    return Checkpoint(round=number, model=model, **more)


@pytest.mark.parametrize(
    "kind",
    [
        *("job.finished", "job.failed", "job.cancelled", "job.interrupted", "job.submitted"),
        *("client.admitted", "client.quarantined", "client.refused", "client.lost"),
        *("checkpoint.sealed", "privacy.spent", "made.up"),
    ],
)
def test_a_job_states_nothing_that_the_coordinator_has_to_have_done(
    parts: Parts, kind: str
) -> None:
    fields = {"round": 1, "site": "site-a", "reason": "planted", "model": "m", "epsilon": 0.0}
    with pytest.raises(JobError, match="may not report events"):
        handler(parts).event(kind, fields)
    assert parts.reported == []
    assert len(list(parts.ledger.entries())) == 0


def test_the_applications_files_are_sealed_under_a_name_of_their_own(parts: Parts) -> None:
    job = handler(parts)
    begin(job)
    save(job)
    job.keep_files({"a/b.txt": memoryview(b"text"), "empty": memoryview(b"")})
    job.keep_files({"a/b.txt": memoryview(b"newer")})
    assert parts.store.models() == ("demo", "demo.files")
    (kept,) = parts.store.versions("demo.files")
    assert (kept.version, kept.job, kept.round) == (2, "demo", 1)
    found = as_files(parts.store.load("demo.files"))
    assert {name: bytes(data) for name, data in found.items()} == {"a/b.txt": b"newer"}
    assert [body["version"] for body in parts.bodies("files")] == [1, 2]
    # They are no checkpoint: the job goes on from its model, and a lost version is found.
    assert [body["model"] for body in parts.bodies("checkpoint")] == ["demo"]
    assert written_versions(parts.ledger) == {"demo": 1, "demo.files": 2}
    resumed = handler(parts).load_checkpoint()
    assert resumed is not None
    assert resumed.round == 1


FORGED: dict[str, Callable[[JobChannelHandler], None]] = {
    "a site that the job has not": lambda job: job.event("update.received", update(site="evil")),
    "a site that was not asked": lambda job: job.event("update.received", update(site="site-b")),
    "another round": lambda job: job.event("update.received", update(7)),
    "a refusal of another round": lambda job: job.event(
        "update.rejected", {"round": 7, "site": "site-a", "reason": "x"}
    ),
    "a round with strangers": lambda job: begin(job, 2, ("site-a", "evil")),
    "round 0": lambda job: begin(job, 0),
    "round 1,000,000": lambda job: begin(job, 10**6),
    "the end of another round": lambda job: job.event(
        "round.finished", {"round": 7, "seconds": 1.0, "sites": 1, "bytes": 1, "metrics": {}}
    ),
    "a checkpoint of another round": lambda job: job.save_checkpoint(checkpoint(7)),
    "a checkpoint of round 0": lambda job: job.save_checkpoint(checkpoint(0)),
    "a charge without privacy": lambda job: job.charge(1, 1, bytes(32)),
}


@pytest.mark.parametrize("name", sorted(FORGED))
def test_what_cannot_be_is_refused_and_enters_no_ledger(parts: Parts, name: str) -> None:
    admitted(parts)
    job = handler(parts)
    begin(job, 1, ("site-a",))
    before = len(list(parts.ledger.entries()))
    with pytest.raises(JobError):
        FORGED[name](job)
    assert len(list(parts.ledger.entries())) == before
    assert parts.store.models() == ()


def test_an_update_counts_once_in_a_round(parts: Parts) -> None:
    admitted(parts)
    job = handler(parts)
    begin(job)
    job.event("update.received", update())
    with pytest.raises(JobError, match="a second update of site-a in round 1"):
        job.event("update.received", update())
    begin(job, 2)
    job.event("update.received", update(2))
    assert [body["round"] for body in parts.bodies("update")] == [1, 2]


def test_the_ledger_has_the_staleness_of_each_update_of_a_version(parts: Parts) -> None:
    for site in SITES:
        admitted(parts, site)
    job = handler(parts, strategy="fedbuff")
    begin(job, 1, ("site-a",))
    job.event("update.received", update(site="site-a"))
    begin(job, 2, ("site-b",))  # site-a is idle now, and may be asked while the version is made
    job.event("update.received", update(2, site="site-b", staleness=1))
    job.event("update.received", update(2, site="site-a"))
    found = [(body["round"], body["site"], body["staleness"]) for body in parts.bodies("update")]
    assert found == [(1, "site-a", 0), (2, "site-b", 1), (2, "site-a", 0)]
    with pytest.raises(JobError, match="a second update of site-a in round 2"):
        job.event("update.received", update(2, site="site-a", staleness=1))
    for wrong in (update(1, site="site-b"), update(2, site="evil")):
        with pytest.raises(JobError):
            job.event("update.received", wrong)
    assert len(parts.bodies("update")) == 3


def test_the_ledger_of_a_job_with_rounds_has_no_staleness(parts: Parts) -> None:
    admitted(parts)
    job = handler(parts)
    begin(job)
    job.event("update.received", update())
    assert "staleness" not in parts.bodies("update")[0]


def test_the_outcomes_of_many_answers_are_durable_together(parts: Parts) -> None:
    job = handler(parts)
    begin(job)
    refused = {"round": 1, "site": "site-b", "reason": "NaN"}
    before = len(list(parts.ledger.entries()))
    job.take_events(
        [
            ("update.received", update()),
            ("log", {"line": "site-b: slow", "site": "site-b"}),
            ("update.rejected", refused),
        ]
    )
    written = list(parts.ledger.entries(after=before))
    assert [(entry.body["site"], entry.body["accepted"]) for entry in written] == [
        ("site-a", True),
        ("site-b", False),
    ]
    assert len({entry.time for entry in written}) == 1
    assert [event.kind for event in parts.reported[-3:]] == [
        "update.received",
        "log",
        "update.rejected",
    ]


def test_of_many_outcomes_those_before_a_contradiction_are_taken(parts: Parts) -> None:
    job = handler(parts)
    begin(job)
    with pytest.raises(JobError, match="a second update of site-a"):
        job.take_events(
            [
                ("update.received", update()),
                ("update.received", update()),
                ("update.received", update(site="site-b")),
            ]
        )
    assert [body["site"] for body in parts.bodies("update")] == ["site-a"]
    assert [event.kind for event in parts.reported] == ["round.started", "update.received"]


def test_a_line_that_cannot_be_written_leaves_the_others(parts: Parts) -> None:
    job = handler(parts)
    job.take_events([("log", {"line": "\ud800"}), ("log", {"line": "readable"})])
    assert [event.to_json()["line"] for event in parts.reported] == ["readable"]


@pytest.mark.parametrize("kind", ["round.started", "round.finished", "checkpoint.sealed", "x"])
def test_only_outcomes_of_answers_are_reported_together(parts: Parts, kind: str) -> None:
    with pytest.raises(JobError, match="may not report events of the kind"):
        handler(parts).take_events([("log", {"line": "x"}), (kind, {"round": 1, "sites": []})])
    assert parts.reported == []


def test_too_many_outcomes_at_once_are_refused(parts: Parts) -> None:
    with pytest.raises(JobError, match="at most 1000 are taken"):
        handler(parts).take_events([("log", {"line": "x"})] * (MAX_EVENTS + 1))
    assert parts.reported == []


def test_what_an_application_asks_outside_of_rounds_has_the_number_0(parts: Parts) -> None:
    admitted(parts)
    job = handler(parts)
    job.event("update.received", update(0))
    begin(job)
    job.event("update.received", update(1))
    for _ in range(2):
        job.event("update.received", update(0))
    with pytest.raises(JobError, match="to which round 0 sent no question"):
        job.event("update.received", update(0, site="evil"))
    assert [body["round"] for body in parts.bodies("update")] == [0, 1, 0, 0]


def test_metrics_reach_people_and_no_ledger(parts: Parts) -> None:
    admitted(parts)
    job = handler(parts)
    begin(job)
    save(job)
    finished = {"round": 1, "seconds": 1.0, "sites": 1, "bytes": 9, "metrics": {"auc": 0.999}}
    job.event("round.finished", finished)
    assert job.metrics == {"auc": 0.999}
    assert "metrics" not in parts.bodies("round")[-1]


# --- checkpoints in the background ----------------------------------------------------


class HeldStore:
    """A store whose writes wait until they are let go, or fail."""

    def __init__(self, real: ModelStore) -> None:
        self._real = real
        self.go = threading.Event()
        self.begun: list[int] = []
        self.fails: Exception | None = None

    def write(self, *arguments: Any, **named: Any) -> Any:
        self.begun.append(named["round"])
        assert self.go.wait(30)
        if self.fails is not None:
            raise self.fails
        return self._real.write(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


FINISHED = {"seconds": 1.0, "sites": 2, "bytes": 9, "metrics": {}}


def test_a_checkpoint_is_sealed_while_the_next_round_runs(parts: Parts) -> None:
    job, real = handler(parts), parts.store
    job._store = held = HeldStore(real)  # type: ignore[assignment]
    begin(job, 1)
    job.save_checkpoint(checkpoint(1))
    job.event("round.finished", {"round": 1, **FINISHED})
    begin(job, 2)
    job.event("update.received", update(2))
    # Nobody is shown what is not complete.
    assert (job.round, real.models(), parts.bodies("checkpoint")) == (0, (), [])
    assert parts.bodies("round")[1]["model_digest"] == ""
    waits = threading.Thread(target=job.save_checkpoint, args=(checkpoint(2),))
    waits.start()
    waits.join(0.2)
    assert waits.is_alive(), "at most one checkpoint waits"
    assert held.begun == [1]
    held.go.set()
    waits.join(30)
    job.settle()
    assert held.begun == [1, 2]
    assert (job.round, [each.round for each in real.versions("demo")]) == (2, [1, 2])
    assert [body["round"] for body in parts.bodies("checkpoint")] == [1, 2]
    found = handler(parts).load_checkpoint()
    assert found is not None
    assert (found.round, bytes(found.model)) == (2, bytes(checkpoint(2).model))


def test_a_seal_that_fails_is_raised_by_the_next_request_and_nothing_follows(parts: Parts) -> None:
    requests: tuple[Callable[[JobChannelHandler], object], ...] = (
        lambda job: job.event("round.finished", {"round": 1, **FINISHED}),
        lambda job: job.take_events([("log", {"line": "x"})]),
        lambda job: job.save_checkpoint(checkpoint(1)),
        lambda job: job.keep_files({}),
        lambda job: job.settle(),
    )
    for request in requests:
        job, real = handler(parts), parts.store
        job._store = held = HeldStore(real)  # type: ignore[assignment]
        held.fails = DiskError("no space left")
        held.go.set()
        begin(job)
        job.save_checkpoint(checkpoint())
        while job._sealing._last is not None and not job._sealing._last.done():
            time.sleep(0.001)
        with pytest.raises(DiskError, match="no space left"):
            request(job)
        assert (job.round, real.models(), held.begun) == (0, (), [1])
        assert "round.finished" not in [event.kind for event in parts.reported]
        # Once it was raised, the job goes on from what is complete.
        held.fails = None
        assert job.load_checkpoint() is None


def test_under_privacy_a_checkpoint_is_durable_before_the_job_goes_on(parts: Parts) -> None:
    job = handler(parts, privacy=SPEC)
    begin(job)
    job.charge(1, 1, bytes(32))
    job._store = held = HeldStore(parts.store)  # type: ignore[assignment]
    waits = threading.Thread(target=job.save_checkpoint, args=(checkpoint(),))
    waits.start()
    waits.join(0.2)
    assert waits.is_alive()
    held.go.set()
    waits.join(30)
    assert (job.round, parts.bodies("checkpoint")[0]["round"]) == (1, 1)
    job.event("round.finished", {"round": 1, **FINISHED})
    assert parts.bodies("round")[-1]["model_digest"] == parts.bodies("checkpoint")[0]["digest"]


def test_a_document_in_a_file_is_sealed_and_comes_back_without_a_map(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    model: dict[str, Any] = {
        "w": draw.random((700, 701), np.float32),
        "n": np.arange(3),
        "e": np.zeros((0, 2)),
    }
    tensors = {"m": draw.random(2_000_000)}
    job = handler(parts)
    begin(job)
    given = Checkpoint(
        round=1, model=document(model), tensors=document(tensors), state={"resumable": True}
    )
    assert isinstance(given.model, FilePart)
    monkeypatch.setattr(MemoryFile, "map", lambda _: pytest.fail("it was mapped"))
    tracemalloc.start()
    job.save_checkpoint(given)
    job.settle()
    found = handler(parts).load_checkpoint()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20, "the state alone has 15 MiB"
    assert found is not None
    assert same_bytes(found.model, given.model)
    assert same_bytes(found.tensors, given.tensors)
    assert found.state == given.state
    monkeypatch.undo()
    loaded = parts.store.load("demo")
    assert list(loaded) == list(model)
    assert all(np.array_equal(loaded[name], array) for name, array in model.items())


def test_what_is_no_document_is_not_sealed(parts: Parts) -> None:
    job = handler(parts)
    begin(job)
    job.save_checkpoint(Checkpoint(round=1, model=bytes(checkpoint().model)[:-1]))
    with pytest.raises(UpdateRejected, match="out of range"):
        job.settle()
    assert parts.store.models() == ()


# --- releases -----------------------------------------------------------------------------


def release(
    job: JobChannelHandler, stage: int, number: int, inputs: bytes, *, seal: bool = True
) -> None:
    begin(job, number)
    job.charge(stage, number, inputs)
    if seal:
        job.save_checkpoint(checkpoint(number))


def test_releases_are_charged_over_stages_repeats_and_restarts(parts: Parts) -> None:
    job = handler(parts, privacy=SPEC)
    release(job, 1, 1, b"a" * 32)
    release(job, 1, 2, b"b" * 32)
    release(job, 2, 1, b"c" * 32)
    # A job that cannot be resumed begins again with the same numbers: they are new releases.
    again = handler(parts, privacy=SPEC)
    release(again, 1, 1, b"a" * 32)
    entries = parts.bodies("privacy")
    assert [body["release"] for body in entries] == [1, 2, 3, 4]
    assert [body["rounds"] for body in entries] == [1, 2, 3, 4]
    assert [body["stage"] for body in entries] == [1, 1, 2, 1]


def test_an_attempt_that_nobody_saw_is_free_for_the_same_inputs_only(parts: Parts) -> None:
    job = handler(parts, privacy=SPEC)
    release(job, 1, 1, b"a" * 32, seal=False)
    release(job, 1, 1, b"a" * 32, seal=False)
    assert len(parts.bodies("privacy")) == 1
    # After a restart of the coordinator as well.
    again = handler(parts, privacy=SPEC)
    release(again, 1, 1, b"a" * 32, seal=False)
    assert len(parts.bodies("privacy")) == 1
    release(again, 1, 1, b"other" * 6 + b"!!", seal=False)
    assert len(parts.bodies("privacy")) == 2
    # What was sealed may have been seen: the same attempt is a release of its own.
    again.save_checkpoint(checkpoint())
    release(again, 1, 1, b"other" * 6 + b"!!")
    assert len(parts.bodies("privacy")) == 3


def test_with_correlated_noise_a_round_is_released_once_and_in_order(parts: Parts) -> None:
    spec = dataclasses.replace(SPEC, sampling="cyclic", groups=2, noise="banded")
    job = handler(parts, privacy=spec)
    release(job, 1, 1, b"a" * 32)
    # An attempt that nobody saw may be made again, with other inputs, too.
    release(job, 1, 2, b"b" * 32, seal=False)
    again = handler(parts, privacy=spec)
    release(again, 1, 2, b"c" * 32)
    assert len(parts.bodies("privacy")) == 3
    # A job that begins again, skips a round, or starts another strategy does not go on.
    for stage, number in ((1, 1), (1, 2), (1, 4), (2, 3)):
        for each in (again, handler(parts, privacy=spec)):
            with pytest.raises(PrivacyError, match="released once, in order"):
                release(each, stage, number, b"d" * 32)
    release(again, 1, 3, b"d" * 32)


def test_of_two_jobs_each_pays_for_itself(parts: Parts) -> None:
    one, two = handler(parts, privacy=SPEC), handler(parts, privacy=SPEC, job="other")
    release(one, 1, 1, b"a" * 32, seal=False)
    release(two, 1, 1, b"a" * 32)
    assert [body["job"] for body in parts.bodies("privacy")] == ["demo", "other"]
    again = handler(parts, privacy=SPEC)
    release(again, 1, 1, b"a" * 32)
    assert len(parts.bodies("privacy")) == 2


def test_the_release_beyond_the_budget_does_not_happen(parts: Parts) -> None:
    job = handler(parts, privacy=SPEC)
    paid = rounds_within(SPEC)
    assert paid > 3
    for number in range(1, paid + 1):
        release(job, number, 1, bytes([number]) * 32)
    with pytest.raises(PrivacyError, match="would exceed the privacy budget"):
        release(job, paid + 1, 1, bytes(32))
    assert len(parts.bodies("privacy")) == paid
    assert parts.bodies("privacy")[-1]["epsilon"] <= SPEC.epsilon


# --- commitments --------------------------------------------------------------------------


def test_a_commitment_is_entered_once_and_bounds_what_a_site_may_claim(parts: Parts) -> None:
    admission = admitted(parts)
    job = handler(parts)
    first = job.commit(admission, root=b"r" * 32, records=118, examples=90)
    assert job.commit(admission, root=b"r" * 32, records=118, examples=90) == first
    assert job.live_sites() == {"site-a": 90}
    with pytest.raises(AdmissionDenied, match="not the data that it committed to before"):
        job.commit(admission, root=b"x" * 32, records=118, examples=90)
    (body,) = parts.bodies("commitment")
    assert (body["records"], body["examples"]) == (118, 90)
    assert handler(parts).live_sites() == {"site-a": 90}


@pytest.mark.parametrize(
    ("records", "coarse"), [(0, 0), (1, 1), (15, 1), (118, 16), (2044, 256), (4096, 4096)]
)
def test_under_privacy_the_number_of_records_is_coarse(
    parts: Parts, records: int, coarse: int
) -> None:
    job = handler(parts, privacy=SPEC)
    job.commit(admitted(parts), root=b"r" * 32, records=records, examples=records)
    (body,) = parts.bodies("commitment")
    assert (body["records"], body["examples"]) == (coarse, coarse)


def test_the_filters_of_an_update_are_in_its_entry_and_its_event(parts: Parts) -> None:
    admitted(parts)
    job = handler(parts)
    begin(job)
    job.event("update.received", update(filters=["clip", "sign"]))
    (entry,) = parts.bodies("update")
    assert entry["filters"] == ["clip", "sign"]
    assert parts.reported[-1].to_json()["filters"] == ["clip", "sign"]
