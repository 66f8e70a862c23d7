"""Who made a model: the join of rounds, updates, admissions and checkpoints.

When a round is repeated after an interruption of the coordinator, its last repetition counts: the
entry that begins round *n* of a job revokes the earlier entries about its rounds from *n* on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fedlearn.errors import LedgerError
from server.ledger.entry import Entry, Json

__all__ = ["Contribution", "EntrySource", "contributions"]


class EntrySource(Protocol):
    """What yields the entries: :meth:`server.ledger.LedgerReader.entries`."""

    def __call__(
        self, after: int = 0, kind: str | None = None, limit: int | None = None
    ) -> Iterator[Entry]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One accepted update that is part of a model, with what admitted its sender.

    ``measurements``, ``tee`` and ``policy`` (a digest) are from the admission or renewal
    that the sender had when it sent; they are empty and ``admission_entry`` is None if the
    ledger holds none for its key. ``staleness`` is that of the update of an asynchronous job, whose
    rounds are versions; None for a job with rounds.
    """

    job: str
    round: int
    site: str
    client: str
    thumbprint: str
    digest: str
    examples: int | None
    staleness: int | None
    tee: str
    measurements: Mapping[str, Json]
    policy: str
    update_entry: int
    admission_entry: int | None

    def to_json(self) -> dict[str, Json]:
        """Return the contribution JSON-ready."""
        return {
            "job": self.job,
            "round": self.round,
            "site": self.site,
            "client": self.client,
            "thumbprint": self.thumbprint,
            "digest": self.digest,
            "examples": self.examples,
            "staleness": self.staleness,
            "tee": self.tee,
            "measurements": dict(self.measurements),
            "policy": self.policy,
            "update_entry": self.update_entry,
            "admission_entry": self.admission_entry,
        }


@dataclass(slots=True)
class _Rounds:
    """What the entries read so far state about the rounds of one job."""

    running: dict[int, dict[str, Contribution]] = field(default_factory=dict)
    finished: dict[int, list[Contribution]] = field(default_factory=dict)
    sealed: set[int] = field(default_factory=set)

    def begin(self, number: int) -> None:
        self.running = {n: found for n, found in self.running.items() if n < number}
        self.finished = {n: found for n, found in self.finished.items() if n < number}
        self.sealed = {n for n in self.sealed if n < number}
        self.running[number] = {}

    def add(self, found: Contribution) -> None:
        # A sender has one update in a round: a later one takes the place of the earlier.
        self.running.setdefault(found.round, {})[found.thumbprint or found.site] = found

    def reject(self, number: int, sender: str, digest: str) -> None:
        # A refused duplicate leaves what was accepted before as it is.
        held = self.running.get(number, {}).get(sender)
        if held is not None and digest in ("", held.digest):
            del self.running[number][sender]

    def quarantine(self, *senders: str) -> None:
        for found in self.running.values():
            for sender in senders:
                found.pop(sender, None)

    def finish(self, number: int) -> None:
        # A checkpoint ends a round as well: whichever of the two comes first.
        if number in self.running or number not in self.finished:
            self.finished[number] = list(self.running.pop(number, {}).values())


def contributions(
    entries: EntrySource,
    job: str,
    *,
    version: int | None = None,
    round: int | None = None,  # noqa: A002 the name that is used everywhere
) -> list[Contribution]:
    """List the accepted updates that a model consists of, by round and site.

    The model is the one of ``job`` at checkpoint ``version``, or after ``round``, or, with
    neither, after the last round whose checkpoint was sealed. Run
    :func:`server.ledger.verification.verify` first: this reads the ledger and does not check
    that it was not altered.

    An update that was rejected after it had been accepted, or whose sender was quarantined
    before the round was finished, is not part of it.

    Raises :class:`fedlearn.errors.LedgerError` when the ledger has no such model.
    """
    until: int | None = None
    if version is not None:
        checkpoint = _checkpoint(entries, job, version)
        until, of_version = checkpoint.sequence, _integer(checkpoint, "round")
        if round is not None and round != of_version:
            raise LedgerError(f"version {version} of {job!r} is of round {of_version}, not {round}")
        round = of_version  # noqa: A001
    admissions: dict[str, Entry] = {}
    rounds = _Rounds()
    for entry in entries():
        if until is not None and entry.sequence > until:
            break
        if entry.body.get("job") != job:
            continue
        if entry.kind in ("admission", "renewal"):
            # By key, and by site for an update that names no key.
            admissions[_thumbprint(entry)] = admissions["site " + _text(entry, "site")] = entry
        elif entry.kind == "round":
            _note_phase(entry, rounds)
        elif entry.kind == "update":
            _note_update(entry, admissions, rounds)
        elif entry.kind == "checkpoint":
            rounds.finish(_integer(entry, "round"))
            rounds.sealed.add(_integer(entry, "round"))
        elif entry.kind == "quarantine":
            rounds.quarantine(_thumbprint(entry), _text(entry, "site"))
    # A round that has finished may be sealed a little later.
    last = max(rounds.sealed or rounds.finished, default=None)
    if last is None or (round is not None and round not in rounds.finished):
        wanted = "finished round" if round is None else f"finished round {round}"
        raise LedgerError(
            f"the ledger holds no {wanted} of a job {job!r}",
            hint="fedlearn ledger show --kind round lists the rounds",
        )
    up_to = last if round is None else round
    found = [
        item
        for number, items in sorted(rounds.finished.items())
        if number <= up_to
        for item in items
    ]
    return sorted(found, key=lambda item: (item.round, item.site, item.thumbprint))


def _checkpoint(entries: EntrySource, job: str, version: int) -> Entry:
    found = None
    for entry in entries(kind="checkpoint"):
        if entry.body.get("job") == job and entry.body.get("version") == version:
            found = entry
    if found is None:
        raise LedgerError(
            f"the ledger holds no checkpoint of version {version} of a job {job!r}",
            hint="fedlearn ledger show --kind checkpoint lists the versions",
        )
    return found


def _note_phase(entry: Entry, rounds: _Rounds) -> None:
    number = _integer(entry, "round")
    phase = entry.body.get("phase")
    if phase == "started":
        rounds.begin(number)
    elif phase == "finished":
        rounds.finish(number)


def _note_update(entry: Entry, admissions: Mapping[str, Entry], rounds: _Rounds) -> None:
    number = _integer(entry, "round")
    site, thumbprint = _text(entry, "site"), _thumbprint(entry)
    if entry.body.get("accepted") is not True:
        rounds.reject(number, thumbprint or site, _text(entry, "digest"))
        return
    admission = admissions.get(thumbprint or f"site {site}")
    granted: Mapping[str, Json] = {} if admission is None else admission.body
    measurements = granted.get("measurements")
    examples, staleness = entry.body.get("examples"), entry.body.get("staleness")
    rounds.add(
        Contribution(
            job=_text(entry, "job"),
            round=number,
            site=site,
            client=_string(granted, "client"),
            thumbprint=thumbprint,
            digest=_text(entry, "digest"),
            examples=examples if type(examples) is int else None,
            staleness=staleness if type(staleness) is int else None,
            tee=_string(granted, "tee"),
            measurements=measurements if isinstance(measurements, Mapping) else {},
            policy=_string(granted, "policy"),
            update_entry=entry.sequence,
            admission_entry=None if admission is None else admission.sequence,
        )
    )


def _integer(entry: Entry, key: str) -> int:
    value = entry.body.get(key)
    if type(value) is not int:
        raise LedgerError(
            f"entry {entry.sequence}: a {entry.kind} entry without a whole number {key!r}",
            entry=entry.sequence,
        )
    return value


def _thumbprint(entry: Entry) -> str:
    return _text(entry, "key_thumbprint") or _text(entry, "thumbprint")


def _text(entry: Entry, key: str) -> str:
    return _string(entry.body, key)


def _string(body: Mapping[str, Json], key: str) -> str:
    value = body.get(key)
    return value if isinstance(value, str) else ""
