"""A job that runs or waits for its sites, as the coordinator holds it, and how it is made."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from attestation.trust import TrustAnchors
from fedlearn.errors import DiskError, StoreError
from fedlearn.job.spec import JobSpec, workload_digest
from fedlearn.privacy.server import noise_secret
from server.admission.absence import Absence
from server.admission.examiner import AdmittableJob
from server.admission.registry import AdmissionRegistry
from server.flower.job_plan import JobPlan, Outcome
from server.flower.job_runner import JobRunner
from server.jobs.job_channel import JobChannelHandler
from server.jobs.records.job_store import JobRecord
from server.state_directory import StateDirectory

__all__ = ["MAX_ATTEMPTS", "OpenJob", "noise_name", "opened"]

_NOISE_DRAWN: Final = "noise secret drawn"
_NOISE_DOMAIN: Final = b"fedlearn-noise-secret/1\0"
MAX_ATTEMPTS: Final = 5
"""How often in a row a site's client may fail before it is admitted, and is started again."""

_MOST_NAMES: Final = 100
"""How often one site's client is started in total, until the job is resumed."""


@dataclass(slots=True)
class OpenJob:
    """One open job.

    ``attempts``   how often each site was ordered to start its client
    ``failed``     how often each site's client failed since it was admitted last
    ``refused``    sites whose client was not admitted, and why
    ``node_keys``  the key of each site's Flower node; ``nodes`` guards them
    ``ending``     how the job ends, as the coordinator decided; its process cannot change it
    ``disk``       the errors of the disk that its process met; empty when there were none
    ``interrupted``  why it does not run now; it continues by itself later
    ``progress``   changes whenever the job makes progress
    """

    record: JobRecord
    admittable: AdmittableJob
    host: JobRunner
    channel: JobChannelHandler
    started: datetime
    life: int = 0
    attempts: dict[str, int] = field(default_factory=dict)
    crashes: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    node_keys: dict[str, bytes] = field(default_factory=dict)
    nodes: threading.Lock = field(default_factory=threading.Lock)
    ending: Outcome | None = None
    disk: list[str] = field(default_factory=list)
    interrupted: str = ""
    progress: int = 0

    def may_try_again(self, site: str) -> bool:
        """Return whether a site's client that failed may be started once more."""
        failed = self.failed.get(site, 0)
        return failed < MAX_ATTEMPTS and self.attempts.get(site, 1) < _MOST_NAMES

    def assignment(self, site: str, attempt: int) -> str:
        """Name the ``attempt`` of a site in this life of the job, the same after a restart.

        It is a DNS label for any names. A resumed job has a new life, because its sites may
        still be stopping clients of the former one.
        """
        text = f"{self.record.name}/{site}/{self.life}/{attempt}".encode()
        return f"a-{hashlib.sha256(text).hexdigest()[:32]}"

    def assignments(self, site: str) -> Iterator[tuple[int, str]]:
        """Yield every attempt that a site may make, and its name."""
        for attempt in range(1, _MOST_NAMES + 1):
            yield attempt, self.assignment(site, attempt)


class _DiskErrors:
    """A job's channel that records the errors of the disk.

    The process is not trusted, so the reason that it gives for its end is not used.
    """

    def __init__(self, channel: JobChannelHandler, noted: list[str]) -> None:
        self._channel = channel
        self._noted = noted

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._channel, name)
        if not callable(member):
            return member

        @functools.wraps(member)
        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return member(*arguments, **named)
            except DiskError as error:
                self._noted.append(str(error))
                raise

        return call


def opened(
    record: JobRecord,
    *,
    directory: StateDirectory,
    registry: AdmissionRegistry,
    trust: TrustAnchors,
    runtime: Path,
    report: Callable[..., object],
    absence: Callable[[str], Absence],
    clock: Callable[[], datetime],
) -> OpenJob:
    """Make an open job of a record; none of its processes runs yet.

    ``absence`` returns what keeps a site away. ``runtime`` is a private directory that never
    holds weights.
    """
    spec = record.spec
    channel = JobChannelHandler(
        spec,
        store=directory.store,
        ledger=directory.ledger,
        registry=registry,
        report=report,
        keep=directory.config.jobs.keep_checkpoints,
        absence=absence,
        clock=clock,
    )
    plan = JobPlan(
        spec=spec,
        bundle=record.bundle.data,
        noise_secret=_noise_secret(directory, spec),
        max_update_bytes=directory.config.limits.update_mib * 1024 * 1024,
        app_memory_bytes=directory.config.jobs.app_memory_mib * 1024 * 1024,
        full_sandbox=directory.config.jobs.sandbox == "full",
    )
    disk: list[str] = []
    return OpenJob(
        record=record,
        admittable=AdmittableJob(
            name=spec.name,
            job_digest=plan.digest,
            bundle_digest=record.bundle.digest,
            workload=workload_digest(plan.digest, record.bundle.digest),
            policy=record.policy_in_force,
            trust=trust,
            sites=frozenset(spec.sites),
        ),
        host=JobRunner(
            plan,
            _DiskErrors(channel, disk),
            directory=runtime / spec.name,
            app_host=directory.config.jobs.app_host,
        ),
        disk=disk,
        channel=channel,
        started=clock(),
        life=_lives(directory, spec.name),
    )


def _lives(directory: StateDirectory, name: str) -> int:
    """Return how often an operator resumed a job, according to the ledger."""
    entries = directory.ledger.entries(kind="job")
    return sum(
        entry.body.get("job") == name and entry.body.get("change") == "resumed" for entry in entries
    )


def _noise_secret(directory: StateDirectory, spec: JobSpec) -> bytes:
    """Return the secret of a job's noise, which is drawn once: another secret is another release.

    :raises StoreError: when it is missing or is not the one that the ledger commits to.
    """
    if spec.privacy is None:
        return b""
    name = noise_name(spec.name)
    known = directory.keys.secret(name)
    entries = (entry.body for entry in directory.ledger.entries(kind="job"))
    entered = [
        body.get("commitment")
        for body in entries
        if body.get("job") == spec.name and body.get("change") == _NOISE_DRAWN
    ]
    if known is None:
        if entered:
            raise _unlike(spec.name, "is missing")
        known = noise_secret(spec.privacy, seed=spec.seed)
        directory.keys.keep(name, known)
    commitment = hashlib.sha256(_NOISE_DOMAIN + known).hexdigest()
    if not entered:
        # A crash after the secret was stored leaves it without an entry.
        body = {"job": spec.name, "change": _NOISE_DRAWN, "commitment": commitment}
        directory.ledger.append("job", body)
    elif entered[0] != commitment:
        raise _unlike(spec.name, "is not the one that was drawn")
    return known


def noise_name(run: str) -> str:
    """Return the name under which the secret of a run's noise is kept."""
    return f"noise-{run}"


def _unlike(job: str, what: str) -> StoreError:
    return StoreError(
        f"the noise secret of job {job} {what}",
        hint="restore the folder keys/ from a backup, or submit the job again as another run: "
        "with another secret one charge would pay for two releases",
    )
