"""A client's side of one round.

::

    advertise -> share -> receive -> masked -> unmask

Each step is possible once, in this order. A client gives each neighbour's secret of one kind only:
the seed of a survivor's own mask, or the private key behind the common masks of one that dropped
out. Both would disclose its update, and more than half of the neighbours have to give either
(:mod:`fedlearn.secure_aggregation.graph`), so that a coordinator which reports different survivors
to different clients gets neither.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Final, Self

from attestation.length_prefixed import pack
from fedlearn.errors import RoundError, UpdateRejected
from fedlearn.secure_aggregation import keys, messages, shamir
from fedlearn.secure_aggregation.fixed_point import Vector
from fedlearn.secure_aggregation.graph import Graph
from fedlearn.secure_aggregation.roster import (
    Credentials,
    PublicKeys,
    Roster,
    Session,
    statement,
)
from fedlearn.secure_aggregation.spec import LEAST_CLIENTS, SecAggSpec

__all__ = ["ClientSession"]

_STEPS: Final = ("advertise", "share", "receive", "mask its update", "unmask")


class ClientSession:
    """The secrets of one client in one session. Not thread-safe.

    :param sites: those of the job, in its order.
    :param quorum: the least number of updates in a sum that this client helps to unmask.
    """

    def __init__(
        self,
        spec: SecAggSpec,
        session: Session,
        *,
        site: str,
        sites: Sequence[str],
        quorum: int,
        credentials: Credentials,
    ) -> None:
        self._spec = spec
        self.session = session
        self._site = site
        self._sites = sites
        self._quorum = quorum
        self._credentials = credentials
        self._done = 0
        self._channel = secrets.token_bytes(keys.KEY_BYTES)
        self._mask = secrets.token_bytes(keys.KEY_BYTES)
        self._seed = secrets.token_bytes(shamir.SECRET_BYTES)
        self._shares: dict[int, bytes] = {}

    def to_bytes(self) -> bytes:
        """Return the session with its secrets, for :meth:`resumed`: not for the wire."""
        roster = messages.write_roster(self._roster.keys, ()) if self._done > 1 else b""
        fields = (self._channel, self._mask, self._seed, roster)
        session = (self.session.job, self.session.round.to_bytes(4, "big"), self.session.id)
        shares = messages.write_numbered(self._shares)
        return messages.write_fields(bytes([self._done]), *session, *fields, shares)

    def resumed(self, data: bytes) -> Self:
        """Take the state that :meth:`to_bytes` wrote, and return this session.

        :raises UpdateRejected: when it is not such a state.
        """
        done, job, number, id_, *fields, shares = messages.read_fields(data, 9)
        self._channel, self._mask, self._seed, roster = fields
        self.session = Session(job=job, round=int.from_bytes(number, "big"), id=id_)
        self._done = done[0]
        if self._done > 1:
            self._enter(Roster(self.session, messages.read_roster(roster), self._sites))
        self._shares = messages.read_numbered(shares)
        return self

    def _enter(self, roster: Roster) -> None:
        self._roster, self._me = roster, roster.number(self._site)
        self._graph = Graph(self._spec, roster.context, len(roster))

    def _step(self, number: int) -> None:
        if self._done != number:
            raise RoundError(
                f"the coordinator asks the client to {_STEPS[number]} after {self._done} "
                f"of the {len(_STEPS)} steps of secure aggregation, each once and in order"
            )
        self._done += 1

    def advertise(self) -> PublicKeys:
        """Return this client's keys, signed."""
        self._step(0)
        channel, mask = keys.public(self._channel), keys.public(self._mask)
        stated = statement(self.session, self._site, channel, mask)
        chain, signature = self._credentials.sign(stated)
        return PublicKeys(
            site=self._site, channel=channel, mask=mask, chain=chain, signature=signature
        )

    def share(self, advertised: Collection[PublicKeys]) -> tuple[dict[int, bytes], bytes]:
        """Return shares of both secrets, sealed to each neighbour, and the commitment to the seed.

        :param advertised: the keys of all clients of the session. Those of the neighbours need a
            certificate and a signature.
        :raises UpdateRejected: when a neighbour's keys are not from an admitted client of its site,
            when this client's own keys are not there, or a sum would have less than the quorum.
        """
        self._step(1)
        roster = Roster(self.session, advertised, self._sites)
        ours = roster.keys[roster.number(self._site)]
        if (ours.channel, ours.mask) != (keys.public(self._channel), keys.public(self._mask)):
            raise UpdateRejected("the roster has other keys for this client than its own")
        if len(roster) < max(self._quorum, LEAST_CLIENTS):
            raise UpdateRejected(
                f"the roster has {len(roster)} clients; secure aggregation needs the quorum of "
                f"{self._quorum}, and {LEAST_CLIENTS} at least"
            )
        self._enter(roster)
        graph = self._graph
        neighbours = graph.neighbours(self._me)
        for each in neighbours:
            theirs = roster.keys[each]
            self._credentials.verify(theirs, theirs.statement(self.session))
        points = [each + 1 for each in neighbours]
        seeds = shamir.split(self._seed, points, graph.threshold)
        private = shamir.split(self._mask, points, graph.threshold)
        sealed = {}
        for each in neighbours:
            shares = seeds[each + 1] + private[each + 1]
            sealed[each] = keys.sealed(self._channel_to(each), shares, self._about(self._me, each))
        return sealed, keys.commitment(self._seed)

    def receive(self, sealed: Mapping[int, bytes]) -> None:
        """Take the shares that neighbours have sealed to this client.

        They are the neighbours with which its update is masked.

        :raises UpdateRejected: naming the site whose shares are not its own, or when there are too
            few to unmask a sum later.
        """
        self._step(2)
        neighbours = set(self._graph.neighbours(self._me))
        if odd := set(sealed) - neighbours:
            raise UpdateRejected(f"shares of client {min(odd)}, which is not a neighbour")
        if len(sealed) < self._graph.threshold:
            raise UpdateRejected(
                f"{len(sealed)} of the {len(neighbours)} neighbours have shared their secrets, and "
                f"{self._graph.threshold} are needed to unmask a sum"
            )
        for each, data in sealed.items():
            try:
                shares = keys.opened(self._channel_to(each), data, self._about(each, self._me))
            except UpdateRejected as error:
                raise UpdateRejected(f"{self._roster.sites[each]}: {error}") from None
            if len(shares) != 2 * shamir.SHARE_BYTES:
                raise UpdateRejected(f"{self._roster.sites[each]}: not a pair of shares")
            self._shares[each] = shares

    def masked(self, vector: Vector) -> Vector:
        """Return an update with its masks; the vector itself is changed."""
        self._step(3)
        keys.add_mask(vector, keys.self_mask_key(self._seed))
        for each in self._shares:
            key = self._common_mask(each)
            keys.add_mask(vector, key, subtract=each < self._me)
        return vector

    def unmask(self, survivors: Collection[int]) -> dict[int, bytes]:
        """Return a share for each neighbour that this client has masked its update with.

        That of the seed where the neighbour survived, and that of the private key where it did not.

        :param survivors: the clients whose masked updates are in the sum.
        :raises UpdateRejected: when this client is not among them, when they are not on the roster,
            when fewer than the quorum are in the sum, or too few neighbours have survived.
        """
        self._step(4)
        alive = set(survivors)
        if self._me not in alive or not alive <= set(range(len(self._roster))):
            raise UpdateRejected("the survivors are not those of a sum with this client's update")
        if len(alive) < max(self._quorum, LEAST_CLIENTS):
            raise UpdateRejected(
                f"the sum has {len(alive)} updates, and this client helps to unmask one of "
                f"{max(self._quorum, LEAST_CLIENTS)} at least"
            )
        if len(alive & set(self._shares)) < self._graph.threshold:
            raise UpdateRejected(
                f"{len(alive & set(self._shares))} of this client's neighbours have survived, and "
                f"{self._graph.threshold} are needed"
            )
        size = shamir.SHARE_BYTES
        return {
            each: shares[:size] if each in alive else shares[size:]
            for each, shares in self._shares.items()
        }

    def names(self, clients: Collection[int]) -> list[str]:
        """Return the sites of some clients of the roster.

        :raises UpdateRejected: for a number that is not on it.
        """
        if self._done < 2 or not set(clients) <= set(range(len(self._roster))):
            raise UpdateRejected("the survivors are not on the roster")
        return [self._roster.sites[each] for each in clients]

    def _channel_to(self, other: int) -> bytes:
        theirs = self._roster.keys[other].channel
        return keys.agreed(self._channel, theirs, keys.CHANNEL, self._roster.context)

    def _common_mask(self, other: int) -> bytes:
        theirs = self._roster.keys[other].mask
        return keys.agreed(self._mask, theirs, keys.MASK, self._roster.context)

    def _about(self, sender: int, receiver: int) -> bytes:
        return pack(self._roster.context, sender.to_bytes(4, "big"), receiver.to_bytes(4, "big"))
