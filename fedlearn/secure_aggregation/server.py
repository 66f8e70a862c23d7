"""The coordinator's side of one round: it forwards, adds, and unmasks the sum."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from fedlearn.errors import QuorumNotReached, UpdateRejected
from fedlearn.secure_aggregation import keys, shamir
from fedlearn.secure_aggregation.fixed_point import Vector
from fedlearn.secure_aggregation.graph import Graph
from fedlearn.secure_aggregation.roster import PublicKeys, Roster, Session
from fedlearn.secure_aggregation.spec import SecAggSpec

__all__ = ["ServerSession"]


class ServerSession:
    """What the coordinator has of one session. Not thread-safe.

    ``wrong``  the sites that gave wrong shares, as far as it is known

    :param advertised: the keys of the clients that answered.
    :param sites: those of the job, in its order.
    :raises UpdateRejected: when a site is there twice, or is not one of the job's.
    """

    def __init__(
        self,
        spec: SecAggSpec,
        session: Session,
        advertised: Collection[PublicKeys],
        sites: Sequence[str],
    ) -> None:
        self.session = session
        self.roster = Roster(session, advertised, sites)
        self._graph = Graph(spec, self.roster.context, len(self.roster))
        self._sealed: dict[int, dict[int, bytes]] = {}
        self._commitments: dict[int, bytes] = {}
        self._masked: set[int] = set()
        self._seeds: dict[int, dict[int, bytes]] = {}
        self._private: dict[int, dict[int, bytes]] = {}
        self._secrets: dict[int, bytes] = {}
        self.wrong: list[str] = []

    def neighbours(self, site: str) -> list[str]:
        """Return the sites whose signatures a client needs."""
        number = self.roster.number(site)
        return [self.roster.sites[each] for each in self._graph.neighbours(number)]

    def shared(self, site: str, sealed: Mapping[int, bytes], commitment: bytes) -> None:
        """Take the sealed shares of a client.

        :raises UpdateRejected: unless there is one for each neighbour, and a commitment.
        """
        number = self.roster.number(site)
        if sorted(sealed) != self._graph.neighbours(number):
            raise UpdateRejected("shares are for each neighbour, and for nobody else")
        if len(commitment) != keys.KEY_BYTES:
            raise UpdateRejected("a commitment has 32 bytes")
        if any(len(data) > keys.SEALED_MOST for data in sealed.values()):
            raise UpdateRejected(f"sealed shares have at most {keys.SEALED_MOST} bytes")
        self._sealed[number] = dict(sealed)
        self._commitments[number] = commitment

    def sealed_to(self, site: str) -> dict[int, bytes]:
        """Return the shares that others have sealed to a client."""
        number = self.roster.number(site)
        return {
            each: self._sealed[each][number]
            for each in self._graph.neighbours(number)
            if each in self._sealed
        }

    def masked(self, site: str) -> None:
        """Note that the masked update of a client is in the sum.

        :raises UpdateRejected: when it has shared no secrets, or is in the sum already.
        """
        number = self.roster.number(site)
        if number not in self._sealed or number in self._masked:
            raise UpdateRejected("a masked update is from a client that shared, once")
        self._masked.add(number)

    @property
    def survivors(self) -> list[int]:
        """The clients whose masked updates are in the sum."""
        return sorted(self._masked)

    def revealed(self, site: str, shares: Mapping[int, bytes]) -> None:
        """Take the shares that a client reveals.

        :raises UpdateRejected: when they are not of neighbours that have shared with it.
        """
        number = self.roster.number(site)
        if not set(shares) <= set(self._graph.neighbours(number)) & set(self._sealed):
            raise UpdateRejected("revealed shares are of neighbours that shared")
        for each, share in shares.items():
            kind = self._seeds if each in self._masked else self._private
            kind.setdefault(each, {})[number + 1] = share

    def recovered(self) -> bool:
        """Return whether the shares that have arrived recover every secret that is needed.

        What they recover is kept, so that this may be asked after each answer.
        """
        return not self._lost()

    def unmasked(self, total: Vector) -> Vector:
        """Return a sum of masked updates without the masks; the vector itself is changed.

        :raises QuorumNotReached: naming the sites whose secrets cannot be recovered, because too
            few of their neighbours are left or too many gave wrong shares.
        """
        if lost := self._lost():
            given = f"; wrong shares came from {', '.join(self.wrong)}" if self.wrong else ""
            raise QuorumNotReached(
                f"the sum cannot be unmasked: {'; '.join(lost)}{given}",
                hint="fewer sites may drop out in a round; lower [aggregation.secagg] threshold "
                "towards 0.5, or raise neighbours",
            )
        for each in self.survivors:
            keys.add_mask(total, keys.self_mask_key(self._secrets[each]), subtract=True)
        for each, left in self._dropped():
            for other in left:
                theirs = self.roster.keys[other].mask
                key = keys.agreed(self._secrets[each], theirs, keys.MASK, self.roster.context)
                # What the survivor has added with one sign is taken away with it.
                keys.add_mask(total, key, subtract=other < each)
        return total

    def _dropped(self) -> Iterator[tuple[int, list[int]]]:
        """Yield each client that shared and is not in the sum, and its neighbours that are."""
        for each in sorted(set(self._sealed) - self._masked):
            left = [other for other in self._graph.neighbours(each) if other in self._masked]
            if left:
                yield each, left

    def _lost(self) -> list[str]:
        """Recover what is possible; return why the rest is not, one text for each client."""
        wanted = [(each, self._seeds) for each in self.survivors]
        wanted += [(each, self._private) for each, _ in self._dropped()]
        lost = []
        for client, shares in wanted:
            if client not in self._secrets:
                try:
                    self._recover(client, shares.get(client, {}))
                except UpdateRejected as error:
                    lost.append(f"{self.roster.sites[client]}: {error}")
        return lost

    def _recover(self, client: int, shares: Mapping[int, bytes]) -> None:
        def right(secret: bytes) -> bool:
            if client in self._masked:
                return keys.commitment(secret) == self._commitments[client]
            return keys.public(secret) == self.roster.keys[client].mask

        secret, odd = shamir.recover(shares, self._graph.threshold, right)
        self._secrets[client] = secret
        for site in (self.roster.sites[point - 1] for point in odd):
            if site not in self.wrong:
                self.wrong.append(site)
