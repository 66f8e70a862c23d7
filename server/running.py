"""One job as it runs, seen from the coordinator: what its process may ask, and who hears it.

:class:`JobDesk` answers a job's process (:class:`server.flower.plan.JobChannel`). What the
process says becomes events for people; what it decides becomes entries of the ledger; the
model of every round becomes a sealed version in the store, together with the state of the
strategy, so that a crash never parts the two.
"""

from __future__ import annotations

import json
import math
import struct
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from fedlearn import update
from fedlearn.errors import AdmissionDenied, JobError, StoreError
from fedlearn.events import (
    KINDS,
    CheckpointSealed,
    Event,
    Log,
    OtherEvent,
    PrivacySpent,
    RoundFinished,
    RoundStarted,
    UpdateReceived,
    UpdateRejected,
)
from fedlearn.job import JobSpec
from fedlearn.privacy import Budget, PrivacySpec
from server.flower.plan import Checkpoint
from server.ledger import Ledger
from server.register import Admission, AdmissionEvent, AdmissionRegister
from server.store import ModelStore

__all__ = ["JobDesk"]

_MAX_STATE: Final = 64 * 1024 * 1024
_CHECKPOINT_MAGIC: Final = b"fedlearn-checkpoint/1\0"

_NOT_FROM_A_JOB: Final = frozenset(
    {"job.finished", "job.failed", "job.cancelled", "job.interrupted", "client.admitted"}
)
"""What only the coordinator itself may say: user code runs in the process that speaks here."""


class JobDesk:
    """Answers one job's process. Safe to use from many threads.

    ``say``       tells people an event of this job
    ``model``     the name under which the model is sealed
    ``keep``      how many versions of the model are kept; the newest are
    """

    def __init__(
        self,
        spec: JobSpec,
        *,
        store: ModelStore,
        ledger: Ledger,
        register: AdmissionRegister,
        say: Callable[[Event], object],
        keep: int,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.spec = spec
        self.model = spec.name
        self._store = store
        self._ledger = ledger
        self._register = register
        self._say = say
        self._keep = keep
        self._clock = clock
        self._lock = threading.Lock()
        self._round = 0
        self._roots: dict[str, bytes] = {}
        self._senders: dict[str, str] = {}
        self._dropped: set[str] = set()
        self._last_digest = ""
        self._metrics: Mapping[str, float] = {}
        self._budget: Budget | None = None
        self._remember()

    @property
    def round(self) -> int:
        """The last round that has a model."""
        return self._round

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics of that round."""
        return self._metrics

    # --- what the job's process says and asks -----------------------------------------

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Take one event; a malformed one ends the job."""
        found = KINDS.get(kind)
        if found is None or kind in _NOT_FROM_A_JOB:
            raise JobError(f"a job's process does not say {kind[:64]!r}")
        event = Event.decode(kind, json.dumps(dict(fields), default=str))
        self._enter(event, fields)
        self._say(event)

    def begin_round(self, round_: int, sites: tuple[str, ...]) -> None:
        """Charge the privacy budget, or refuse the round.

        :raises PrivacyError: when the round would exceed the budget.
        """
        if self._budget is None:
            return
        spent = self._budget.charge(round_)
        # The entry precedes the round, so that no crash can spend what was not written down.
        self._ledger.append("privacy", {"job": self.spec.name, "round": round_, **spent.to_json()})
        self._say(
            PrivacySpent(
                round=round_,
                epsilon=spent.epsilon,
                delta=spent.delta,
                unit=spent.spec.unit,
                sampling=spent.spec.sampling_text,
                accountant=spent.spec.accountant,
                limit=self._budget.spec.epsilon,
            )
        )

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Seal the model and the state of one round; durable when this returns."""
        owner = self.spec.owner_public_key()
        stored = self._store.write(
            self.model,
            checkpoint.model,
            job=self.spec.name,
            round=checkpoint.round,
            state=_pack(checkpoint),
            meta={"rounds": self.spec.rounds},
            recipients=(owner,) if owner else (),
        )
        with self._lock:
            self._round = checkpoint.round
            self._last_digest = stored.digest.hex()
        self._store.prune(self.model, keep=self._keep)
        self._say(
            CheckpointSealed(
                round=checkpoint.round,
                model=self.model,
                version=stored.version,
                bytes=stored.path.stat().st_size,
            )
        )

    def load_checkpoint(self) -> Checkpoint | None:
        """Return the last sealed checkpoint; never an older one than the ledger names.

        :raises StoreError: when the store was rolled back or damaged.
        """
        written = self._written_version()
        if self.model not in self._store.models():
            if written:
                raise StoreError(
                    f"version {written} of {self.model} was written and is not there",
                    hint="restore the state directory from its newest backup",
                )
            return None
        stored = self._store.latest(self.model, expected_version=written)
        model = self._store.load(self.model, stored.version)
        tensors, state = _unpack(self._store.state(self.model, stored.version))
        with self._lock:
            self._round = stored.round
        return Checkpoint(round=stored.round, model=model, tensors=tensors, state=state)

    def live_sites(self) -> frozenset[str]:
        """Return the sites that are admitted now and have committed to their data.

        Without those whose admission ended after their update of this round, though they may
        have a new one: what was sent under the old one does not count.
        """
        live = self._register.of_job(self.spec.name, now=self._clock())
        with self._lock:
            fit = self._roots.keys() - self._dropped
            return frozenset(a.site for a in live if a.site in fit)

    def admission_ended(self, event: AdmissionEvent) -> None:
        """Drop what a site has sent in this round; not when the same client came back."""
        with self._lock:
            if not event.superseded and event.admission.site in self._senders:
                self._dropped.add(event.admission.site)

    # --- what clients commit to -------------------------------------------------------

    def commit(self, admission: Admission, *, root: bytes, records: int) -> int:
        """Enter a site's commitment to its data; return the number of the entry.

        :raises AdmissionDenied: when the site committed to other data before.
        """
        with self._lock:
            known = self._roots.get(admission.site)
            if known is not None and known != root:
                raise AdmissionDenied(
                    f"the data of site {admission.site} is not what it committed to before its "
                    "first round",
                    hint="restore the data, or submit a new job for the new data",
                )
            entry = self._ledger.append(
                "commitment",
                {
                    "job": self.spec.name,
                    "site": admission.site,
                    "root": root.hex(),
                    "records": records,
                    "key_thumbprint": admission.thumbprint.hex(),
                },
            )
            self._roots[admission.site] = root
        return entry.sequence

    # --- inside -----------------------------------------------------------------------

    def _remember(self) -> None:
        """Read from the ledger what an earlier life of the coordinator entered."""
        charged = []
        for entry in self._ledger.entries(kind="commitment"):
            if entry.body.get("job") == self.spec.name:
                self._roots[str(entry.body["site"])] = bytes.fromhex(str(entry.body["root"]))
        for entry in self._ledger.entries(kind="privacy"):
            number = entry.body.get("round")
            if entry.body.get("job") == self.spec.name and isinstance(number, int):
                charged.append(number)
        privacy: PrivacySpec | None = self.spec.privacy
        if privacy is not None:
            self._budget = Budget(privacy, charged)

    def _written_version(self) -> int:
        highest = 0
        for entry in self._ledger.entries(kind="checkpoint"):
            version = entry.body.get("version")
            if entry.body.get("job") == self.spec.name and isinstance(version, int):
                highest = max(highest, version)
        return highest

    def _enter(self, event: Event, fields: Mapping[str, Any]) -> None:
        """Put into the ledger what belongs there."""
        job = self.spec.name
        if isinstance(event, RoundStarted):
            body: dict[str, Any] = {"phase": "started", "participants": list(event.sites)}
            self._ledger.append("round", {"job": job, "round": event.round, **body})
            with self._lock:
                self._senders.clear()
                self._dropped.clear()
        elif isinstance(event, UpdateReceived):
            body = {
                "site": event.site,
                "key_thumbprint": self._note_sender(event.site, str(fields.get("key", ""))),
                "digest": str(fields.get("digest", "")),
                "examples": event.examples,
                "accepted": True,
            }
            self._ledger.append("update", {"job": job, "round": event.round, **body})
        elif isinstance(event, UpdateRejected):
            body = {
                "site": event.site,
                "key_thumbprint": self._senders.get(event.site) or self._key_of(event.site),
                "accepted": False,
                "reason": event.reason,
            }
            self._ledger.append("update", {"job": job, "round": event.round, **body})
        elif isinstance(event, RoundFinished):
            self._metrics = event.metrics
            body = {
                "phase": "finished",
                "participants": event.sites,
                "model_digest": self._last_digest,
                "seconds": round(event.seconds, 3),
                "metrics": {k: v if math.isfinite(v) else str(v) for k, v in event.metrics.items()},
            }
            self._ledger.append("round", {"job": job, "round": event.round, **body})
        elif isinstance(event, OtherEvent):
            self._say(Log(line=f"an event of an unknown kind: {event.name}"))

    def _note_sender(self, site: str, key: str) -> str:
        """Remember with which admission a site sent its update; return its thumbprint."""
        key = key or self._key_of(site)
        with self._lock:
            self._senders[site] = key
            ended = self._register.ended(bytes.fromhex(key))
            if ended is not None and not ended.superseded:
                self._dropped.add(site)
        return key

    def _key_of(self, site: str) -> str:
        live = self._register.of_job(self.spec.name, now=self._clock())
        return next((a.thumbprint.hex() for a in live if a.site == site), "")


def _pack(checkpoint: Checkpoint) -> bytes:
    """Encode what is not weights: ``magic | u64be length | JSON | safetensors``."""
    state = json.dumps(dict(checkpoint.state), sort_keys=True).encode()
    if len(state) > _MAX_STATE:
        raise StoreError(f"the state of a strategy has at most {_MAX_STATE} bytes of JSON")
    tensors = update.encode(dict(checkpoint.tensors))
    return b"".join((_CHECKPOINT_MAGIC, struct.pack(">Q", len(state)), state, tensors))


def _unpack(data: bytes) -> tuple[dict[str, update.Array], dict[str, Any]]:
    start = len(_CHECKPOINT_MAGIC)
    if not data.startswith(_CHECKPOINT_MAGIC) or len(data) < start + 8:
        raise StoreError("the sealed state is not that of a checkpoint")
    (length,) = struct.unpack_from(">Q", data, start)
    body = start + 8
    if length > _MAX_STATE or body + length > len(data):
        raise StoreError("the sealed state of a checkpoint is cut short")
    state = json.loads(data[body : body + length])
    return update.decode(data[body + length :]), state
