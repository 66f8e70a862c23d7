"""Secure aggregation in the client: its secrets, its masked update, and what it refuses.

Nothing but masked updates leaves: no metric, no evaluation, and no text of the app. The client
runs the protocol in its own process, outside the app, in the code that its evidence measures.

A sum of a round and a sum of the same round without one site differ by the update of that site. So
a client helps to unmask a round once; after that only with exactly the same survivors, which
happens where a round is run again after a crash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from attestation.length_prefixed import pack
from edge.client.flower.fleet_session import Identity
from edge.protocol.peer import ECDSA, check_signature, identified
from fedlearn.app.array_records import arrays_of, record_of, records_of
from fedlearn.app.flower import MASKED, SECAGG
from fedlearn.errors import FedlearnError, JobError, RoundError, UpdateRejected
from fedlearn.identity.spiffe import ClientId
from fedlearn.job.constraints.robust_rules import least_updates
from fedlearn.job.spec import JobSpec
from fedlearn.secure_aggregation import messages
from fedlearn.secure_aggregation.client import ClientSession
from fedlearn.secure_aggregation.fixed_point import encoded
from fedlearn.secure_aggregation.roster import (
    Credentials,
    InsecureUnsignedKeys,
    PublicKeys,
    Session,
)

__all__ = ["FleetCredentials", "MaskedUpdates"]

_SURVIVORS: Final = b"fedlearn-secagg-survivors/1\0"


class FleetCredentials:
    """The certificate of this client's admission, with which it signs its keys.

    Those of others are from the CA of the coordinator that this client has verified; each names
    the job and the site.
    """

    def __init__(
        self,
        identity: Identity,
        job: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._identity = identity
        self._job = job
        self._now = now

    def renew(self, identity: Identity) -> None:
        """Use a new certificate from now on."""
        self._identity = identity

    def sign(self, statement: bytes) -> tuple[bytes, bytes]:
        """Return the certificate, PEM, and the signature by its key."""
        identity = self._identity
        chain = identity.chain[0].public_bytes(Encoding.PEM)
        return chain, identity.key.sign(statement, ECDSA)

    def verify(self, keys: PublicKeys, statement: bytes) -> None:
        """Check that a client of the site, admitted to this job, has signed a statement.

        :raises UpdateRejected: with the reason why not.
        """
        authority = self._identity.authorities[0].public_bytes(Encoding.PEM)
        what = f"the client of {keys.site}"
        try:
            who, key = identified(keys.chain, authority, self._now(), what)
            check_signature(key, keys.signature, statement, f"the keys of {keys.site}")
        except FedlearnError as error:
            raise UpdateRejected(str(error), hint=error.hint) from error
        if not isinstance(who, ClientId) or (who.job, who.site) != (self._job, keys.site):
            raise UpdateRejected(f"the keys of {keys.site} are signed by {who}")


class MaskedUpdates:
    """Secure aggregation of one job at one site. Not thread-safe.

    :param weighted_by: the metric that is the weight of an update.
    :param most_examples: the largest weight, which the coordinator cannot check; 0 for the job's.
    :param credentials: by default keys are not signed, as in a simulation.
    :param memory: of earlier calls, from :attr:`memory`.
    """

    def __init__(
        self,
        spec: JobSpec,
        site: str,
        *,
        weighted_by: str,
        most_examples: int = 0,
        credentials: Credentials | None = None,
        memory: bytes = b"",
    ) -> None:
        self._spec = spec
        self._site = site
        self._weighted_by = weighted_by
        self._most = most_examples
        self._credentials = credentials or InsecureUnsignedKeys()
        self._session: ClientSession | None = None
        self._unmasked: dict[int, bytes] = {}
        if memory:
            session, *unmasked = messages.read_fields(memory, None)
            if session:
                self._session = self._new(Session(job=bytes(32), round=0, id=bytes(16)))
                self._session.resumed(session)
            self._unmasked = {int.from_bytes(each[:4], "big"): each[4:] for each in unmasked}

    @property
    def memory(self) -> bytes:
        """What is kept from one call to the next, secrets among it."""
        session = b"" if self._session is None else self._session.to_bytes()
        rounds = (number.to_bytes(4, "big") + each for number, each in self._unmasked.items())
        return messages.write_fields(session, *rounds)

    def _new(self, session: Session) -> ClientSession:
        spec = self._spec
        return ClientSession(
            spec.aggregation.secagg,
            session,
            site=self._site,
            sites=spec.sites,
            quorum=least_updates(spec.strategy.options, spec.quorum),
            credentials=self._credentials,
        )

    def answer(self, asked: RecordDict, round_: int) -> RecordDict:
        """Return the answer to a message of the type :data:`fedlearn.app.flower.SECAGG`.

        :raises FedlearnError: for a message that is out of order, or asks for what this client
            does not give.
        """
        question = records_of(asked, ConfigRecord).get(SECAGG, {})
        stage, id_, body = (question.get(key) for key in ("stage", "session", "body"))
        if not isinstance(id_, bytes) or not isinstance(body, bytes):
            raise JobError("a message of secure aggregation has a session and a body")
        if stage == "advertise":
            session = Session(job=self._spec.digest(), round=round_, id=id_)
            self._session = self._new(session)
            found = messages.write_keys(self._session.advertise())
        else:
            found = self._step(str(stage), self._in_session(round_, id_), body)
        answer: Mapping[str, Any] = {"stage": stage, "session": id_, "body": found}
        return RecordDict({SECAGG: ConfigRecord(dict(answer))})

    def _step(self, stage: str, session: ClientSession, body: bytes) -> bytes:
        match stage:
            case "share":
                return messages.write_shares(*session.share(messages.read_roster(body)))
            case "receive":
                session.receive(messages.read_numbered(body))
                return b""
            case "unmask":
                survivors = messages.read_numbers(body)
                digest = self._checked(session, survivors)
                shares = messages.write_numbered(session.unmask(survivors))
                self._unmasked[session.session.round] = digest
                return shares
        raise JobError(f"{stage[:40]!r} is not a stage of secure aggregation")

    def _in_session(self, round_: int, id_: bytes | None = None) -> ClientSession:
        session = self._session
        if (
            session is None
            or session.session.round != round_
            or id_ not in (None, session.session.id)
        ):
            raise RoundError(
                f"this client has no session of secure aggregation for round {round_}",
                hint="a client that was started anew takes part from the next round on",
            )
        return session

    def _checked(self, session: ClientSession, survivors: list[int]) -> bytes:
        """Return a digest of whose sum is unmasked.

        :raises RoundError: when another sum of that round was unmasked.
        """
        sites = [site.encode() for site in session.names(survivors)]
        digest = hashlib.sha256(_SURVIVORS + pack(*sites)).digest()
        if self._unmasked.get(session.session.round, digest) != digest:
            raise RoundError(
                f"round {session.session.round} was unmasked with other sites: two sums of one "
                "round disclose the updates in which they differ",
                hint="cancel the job, and submit it again",
            )
        return digest

    def masked(self, answer: RecordDict, asked: RecordDict, round_: int) -> RecordDict:
        """Return the masked update of an answer to a message to train, and nothing else of it.

        :param answer: the records of the app, with arrays that are not packed.
        :param asked: what it was sent, likewise.
        :raises FedlearnError: when it is not one update of the model with a weight, or is out of
            order.
        """
        session = self._in_session(round_)
        updates = list(records_of(answer, ArrayRecord).values())
        models = list(records_of(asked, ArrayRecord).values())
        metrics = list(records_of(answer, MetricRecord).values())
        if len(updates) != 1 or len(models) != 1 or len(metrics) != 1:
            raise UpdateRejected(
                "with secure aggregation, an update is one ArrayRecord and one MetricRecord"
            )
        weight = metrics[0].get(self._weighted_by)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight % 1:
            raise UpdateRejected(
                f"the update has no whole number {self._weighted_by!r}, its weight"
            )
        if self._most and weight > self._most:
            raise UpdateRejected(
                f"the update weighs {weight}, and this client has committed to {self._most} "
                "examples"
            )
        model, update = arrays_of(models[0]), arrays_of(updates[0])
        ordered = {name: update[name] for name in model if name in update}
        vector = encoded(self._spec.aggregation.secagg, ordered | update, model, int(weight))
        return RecordDict({MASKED: record_of({MASKED: session.masked(vector)})})
