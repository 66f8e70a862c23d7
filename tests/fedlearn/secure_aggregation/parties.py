"""The parties of one round of secure aggregation, in memory, over the bytes that travel."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedlearn.secure_aggregation import messages
from fedlearn.secure_aggregation.client import ClientSession
from fedlearn.secure_aggregation.fixed_point import Vector, word
from fedlearn.secure_aggregation.roster import InsecureUnsignedKeys, PublicKeys, Session
from fedlearn.secure_aggregation.server import ServerSession
from fedlearn.secure_aggregation.spec import SecAggSpec

JOB = bytes(32)


def names(count: int) -> list[str]:
    return [f"site-{number:04}" for number in range(count)]


@dataclass
class Round:
    """A round of ``count`` clients; each stage is a method, which leaves out some clients."""

    count: int
    spec: SecAggSpec = field(default_factory=SecAggSpec)
    quorum: int = 1
    session: Session = field(default_factory=lambda: Session(job=JOB, round=1, id=bytes(16)))

    def __post_init__(self) -> None:
        self.sites = names(self.count)
        self.clients = {
            site: ClientSession(
                self.spec,
                self.session,
                site=site,
                sites=self.sites,
                quorum=self.quorum,
                credentials=InsecureUnsignedKeys(),
            )
            for site in self.sites
        }
        self.sent: dict[str, Vector] = {}

    def advertise(self, without: Collection[str] = ()) -> list[PublicKeys]:
        found = [
            messages.read_keys(messages.write_keys(client.advertise()), site)
            for site, client in self.clients.items()
            if site not in without
        ]
        self.server = ServerSession(self.spec, self.session, found, self.sites)
        return found

    def share(self, without: Collection[str] = ()) -> None:
        for site in list(self.server.roster.sites):
            roster = messages.write_roster(self.server.roster.keys, self.server.neighbours(site))
            if site not in without:
                sealed, commitment = self.clients[site].share(messages.read_roster(roster))
                data = messages.write_shares(sealed, commitment)
                self.server.shared(site, *messages.read_shares(data))

    def receive(self, without: Collection[str] = ()) -> None:
        for site in self.server.roster.sites:
            if self.shared(site) and site not in without:
                data = messages.write_numbered(self.server.sealed_to(site))
                self.clients[site].receive(messages.read_numbered(data))

    def shared(self, site: str) -> bool:
        return self.server.roster.number(site) in self.server._sealed

    def mask(self, vectors: Mapping[str, Vector]) -> Vector:
        """Return the sum of the masked vectors of these clients."""
        total = None
        for site, vector in vectors.items():
            masked = self.clients[site].masked(vector.copy())
            self.sent[site] = masked.copy()
            self.server.masked(site)
            total = masked if total is None else total + masked
        assert total is not None
        return total

    def unmask(self, without: Collection[str] = ()) -> None:
        survivors = messages.read_numbers(messages.write_numbers(self.server.survivors))
        for number in survivors:
            site = self.server.roster.sites[number]
            if site not in without:
                revealed = messages.write_numbered(self.clients[site].unmask(survivors))
                self.server.revealed(site, messages.read_numbered(revealed))


def vectors(spec: SecAggSpec, sites: Collection[str], size: int, seed: int) -> dict[str, Any]:
    """Return random integers of the whole range of the modulus."""
    draw = np.random.default_rng(seed)
    kind = word(spec)
    return {site: draw.integers(0, np.iinfo(kind).max, size, kind, endpoint=True) for site in sites}
