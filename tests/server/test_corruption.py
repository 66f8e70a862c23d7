"""Whatever is damaged in a state directory is refused or named: no foreign error, no silence.

Every file of a stopped coordinator is damaged at each position of a stride, cut and removed, and
everything that a coordinator learns from its state at the start is read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attestation.errors import AttestationError
from fedlearn.errors import FedlearnError, StoreError
from fedlearn.job.events import Log
from server.admission.exclusions import ExclusionList
from server.config import ServerConfig
from server.identity.operators import OperatorRegistry
from server.identity.site_records import site_entries
from server.identity.site_registry import SiteRegistry
from server.jobs.records.event_store import StoredEvent
from server.jobs.supervisor import JobSupervisor
from server.state_directory import StateDirectory
from tests.harness.restarting_coordinator import restarting_coordinator, tiny_bundle

STRIDE = 211
JOB = 'name = "{}"\napp = "app"\nrounds = 1\nsites = ["site-a"]\npolicy = "policy.toml"\n'
POLICY = (
    'version = 1\nname = "p"\naccept = ["sample"]\ninsecure_sample = true\n'
    '[[reference]]\nclaim = "software"\nvalue = "ab"\n'
)

Facts = dict[str, Any]


class Named(str):
    """What is reported where something is not as it was written."""


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[Path, bytes]]]:
    """A state with jobs, models, sites, operators and an exclusion, and every file of it."""
    folder = tmp_path_factory.mktemp("corrupt")
    with pytest.MonkeyPatch.context() as patch, restarting_coordinator(folder) as start:
        patch.setattr(JobSupervisor, "_watch", lambda *_: None)
        coordinator = start()
        bundle = tiny_bundle(folder / "app")
        for name in ("alpha", "beta"):
            coordinator.submit_job(
                "alice", job_toml=JOB.format(name), bundle=bundle, policy_toml=POLICY
            )
            for number in range(20):
                coordinator.events.report(name, Log(line=f"line {number} of {name}"))
            for round_ in (1, 2):
                weights = {"w": np.arange(300, dtype=np.float32) * round_}
                coordinator._directory.store.write(name, weights, round=round_, state=b"momentum")
        coordinator.cancel_job("alice", "beta")
        excluded = {"job": "alpha", "site": "site-a", "client": "c", "change": "laid"}
        about = {"until": None, "reason": "r", "operator": "alice"}
        coordinator._directory.ledger.append("exclusion", {**excluded, **about})
        start.stop()
        whole = folder / "state"
        yield folder, {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}


def _now() -> datetime:
    return datetime.now(UTC)


def look(folder: Path) -> Facts:
    """Return what a coordinator learns from its state at the start, and its commands from it."""
    config = ServerConfig.load(folder / "server.toml")
    found: Facts = {}
    with StateDirectory.open(config) as directory:
        directory.keys.sweep()
        verified = directory.ledger.verify(directory.ledger.public_key)
        found["ledger"] = (verified.entries, str(verified.head))
        for model in directory.store.models():
            stored = directory.store.verify(model)
            found[f"model {model}"] = [(s.version, s.digest.hex()) for s in stored]
            weights = b"".join(array.tobytes() for array in directory.store.load(model).values())
            found[f"weights {model}"] = hashlib.sha256(
                weights + directory.store.state(model)
            ).digest()
        found["ca"] = directory.ca.key_digest
        for key in ("order_key", "result_key"):
            found[key] = getattr(directory, key).private_numbers().private_value
        with contextlib.closing(directory.job_store()) as book:
            for job in book.states():
                name = job.name
                found[f"state {name}"] = job if job.sites else Named(job.detail)
                try:
                    found[f"job {name}"] = book.get(name)
                except StoreError as error:
                    found[f"job {name}"] = Named(error)
                found[f"events {name}"] = book.events.page(name, most=100_000)
            for name, reason in book.set_apart.items():
                found.setdefault(f"job {name}", Named(reason))
        sites = SiteRegistry(
            entries=site_entries(directory.ledger),
            address="127.0.0.1:1",
            ca_pin=directory.ca.key_digest,
            clock=_now,
            record=lambda *_: None,
        )
        found["sites"] = sites.list()
        operators = (entry.body for entry in directory.ledger.entries(kind="operator"))
        registry = OperatorRegistry(
            ca=directory.ca, entries=operators, record=lambda *_: None, clock=_now
        )
        found["operators"] = registry.list()
        excluded = ExclusionList(e.body for e in directory.ledger.entries(kind="exclusion"))
        found["exclusions"] = excluded.of_job("alpha", now=_now())
    return found


def _named_events(before: tuple[StoredEvent, ...], after: tuple[StoredEvent, ...]) -> bool:
    """Return whether each event that differs states that it does."""
    known = {event.sequence: event for event in before}
    changed = [event for event in after if known.get(event.sequence) != event]
    return bool(changed) and all("on the disk" in event.body for event in changed)


def outcome(folder: Path, truth: Facts) -> str:
    """Return ``same``, ``refused``, ``named`` or, what must not be, ``silent``."""
    try:
        found = look(folder)
    except (FedlearnError, AttestationError) as error:
        return "refused" if str(error) else "refused without a word"
    differing = [key for key in truth.keys() | found.keys() if truth.get(key) != found.get(key)]
    for key in differing:
        value = found.get(key)
        if isinstance(value, Named):
            continue
        if key.startswith("events "):
            # Of a job that is named as missing its events may be missing too.
            job = found.get(key.replace("events", "job"))
            if isinstance(job, Named) or _named_events(truth[key], found[key]):
                continue
        return f"silent: {key}: {truth.get(key)!r} is {value!r}"
    return "named" if differing else "same"


def restore(folder: Path, files: dict[Path, bytes]) -> None:
    shutil.rmtree(folder / "state")
    for path, data in files.items():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o600)


def test_an_undamaged_state_is_the_same(state: tuple[Path, dict[Path, bytes]]) -> None:
    folder, files = state
    restore(folder, files)
    truth = look(folder)
    assert {"job alpha", "job beta", "model alpha", "sites", "operators"} <= truth.keys()
    assert not any(isinstance(value, Named) for value in truth.values())
    assert outcome(folder, truth) == "same"


def test_a_damaged_byte_is_refused_or_named(state: tuple[Path, dict[Path, bytes]]) -> None:
    folder, files = state
    restore(folder, files)
    truth = look(folder)
    counts: dict[str, dict[str, int]] = {}
    for path, data in files.items():
        name = path.relative_to(folder / "state").as_posix()
        for position in range(0, len(data), STRIDE):
            restore(folder, files)
            damaged = bytearray(data)
            damaged[position] ^= 0xFF
            path.write_bytes(damaged)
            came = outcome(folder, truth)
            assert came in ("same", "refused", "named"), f"{name}, byte {position}: {came}"
            of_file = counts.setdefault(name.split("/")[0], {})
            of_file[came] = of_file.get(came, 0) + 1
    assert counts["jobs.sqlite"]["named"] > 10
    assert counts["ledger.sqlite"]["refused"] > 20
    assert "same" not in counts["store"]
    assert set(counts["bundles"]) == {"named"}


def test_a_cut_or_missing_file_is_refused_or_named(
    state: tuple[Path, dict[Path, bytes]],
) -> None:
    folder, files = state
    restore(folder, files)
    truth = look(folder)
    for path, data in files.items():
        name = path.relative_to(folder / "state").as_posix()
        for length in (None, *sorted({0, 1, len(data) // 2, max(0, len(data) - 1)})):
            restore(folder, files)
            if length is None:
                path.unlink()
            elif length < len(data):
                path.write_bytes(data[:length])
            else:
                continue
            came = outcome(folder, truth)
            assert came in ("same", "refused", "named"), f"{name}, {length}: {came}"
            harmless = {"ledger.pub.pem", "operator/ca.pem", "operator/operator.toml"}
            harmless.add("app-logs.sqlite")  # nothing reads it but the owner of a job
            if came == "same" and name not in harmless:
                # Nothing that counts was in what is missing.
                left = "" if length is None else data[length:].strip(b"\0\n")
                assert not left or name.startswith("operator/"), f"{name}, {length}"


@pytest.mark.parametrize("kind", ["store/models", "keys/secrets"])
def test_an_exchanged_file_is_refused(state: tuple[Path, dict[Path, bytes]], kind: str) -> None:
    folder, files = state
    restore(folder, files)
    truth = look(folder)
    of_kind = sorted(p for p in files if p.parent == folder / "state" / kind)
    assert len(of_kind) > 2
    for index, first in enumerate(of_kind):
        for second in of_kind[index + 1 :]:
            restore(folder, files)
            first.write_bytes(files[second])
            second.write_bytes(files[first])
            assert outcome(folder, truth) == "refused", (first.name, second.name)
