"""The clients of a round with their keys, signed by each, and the digest of all.

What a client signs names the job, the round, the session and its site, so that keys of another
round or site cannot be put in their place. The digest of the whole roster is in every key and every
sealed share: clients to which the coordinator has shown different rosters cannot read each other's
shares.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Protocol

from attestation.length_prefixed import pack
from fedlearn.errors import UpdateRejected
from fedlearn.secure_aggregation.keys import KEY_BYTES

__all__ = ["Credentials", "InsecureUnsignedKeys", "PublicKeys", "Roster", "Session"]

SESSION_BYTES: Final = 16
_STATEMENT: Final = b"fedlearn-secagg-keys/1\0"
_ROSTER: Final = b"fedlearn-secagg-roster/1\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One run of the protocol.

    ``job``    digest of the job, 32 bytes
    ``round``  its number
    ``id``     16 random bytes of the coordinator; a round that is run again has others
    """

    job: bytes
    round: int
    id: bytes

    def __post_init__(self) -> None:
        if len(self.id) != SESSION_BYTES or not 0 <= self.round < 2**31:
            raise UpdateRejected("a session of secure aggregation has a round and 16 bytes")

    def to_bytes(self) -> bytes:
        """Return what is bound to every statement and key of it."""
        return pack(self.job, self.round.to_bytes(4, "big"), self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKeys:
    """The keys of one client for one session, with its signature and certificate.

    ``channel``    X25519, for shares to it
    ``mask``       X25519, for the masks that it has in common with others
    ``chain``      certificate of its admission, PEM
    ``signature``  over :meth:`statement` by the key of that certificate
    """

    site: str
    channel: bytes
    mask: bytes
    chain: bytes
    signature: bytes

    def __post_init__(self) -> None:
        if len(self.channel) != KEY_BYTES or len(self.mask) != KEY_BYTES:
            raise UpdateRejected(f"the keys of {self.site} do not have {KEY_BYTES} bytes")

    def statement(self, session: Session) -> bytes:
        """Return what the client signs."""
        return statement(session, self.site, self.channel, self.mask)


def statement(session: Session, site: str, channel: bytes, mask: bytes) -> bytes:
    """Return the statement that these are the keys of a site in a session."""
    return _STATEMENT + pack(session.to_bytes(), site.encode(), channel, mask)


class Credentials(Protocol):
    """How a client signs its keys, and verifies those of others."""

    def sign(self, statement: bytes) -> tuple[bytes, bytes]:
        """Return the certificate and the signature of this client."""
        ...

    def verify(self, keys: PublicKeys, statement: bytes) -> None:
        """Check that a statement is from an admitted client of the site that it names.

        :raises UpdateRejected: with the reason why it is not.
        """
        ...


class InsecureUnsignedKeys:
    """Keys that nobody signs: for a simulation, whose clients share one process."""

    def sign(self, statement: bytes) -> tuple[bytes, bytes]:
        """Return no certificate and no signature."""
        del statement
        return b"", b""

    def verify(self, keys: PublicKeys, statement: bytes) -> None:
        """Accept the keys."""
        del keys, statement


class Roster:
    """The clients of a session, numbered in the order of the job's sites."""

    def __init__(
        self, session: Session, keys: Collection[PublicKeys], sites: Collection[str]
    ) -> None:
        """Check that no site is there twice, and that each is one of the job's.

        :raises UpdateRejected: naming the site.
        """
        order = {site: place for place, site in enumerate(sites)}
        for each in keys:
            if each.site not in order:
                raise UpdateRejected(f"{each.site!r} of the roster is not a site of the job")
        self.keys = sorted(keys, key=lambda each: order[each.site])
        self.sites = [each.site for each in self.keys]
        for first, second in zip(self.sites, self.sites[1:], strict=False):
            if first == second:
                raise UpdateRejected(f"the roster has {first!r} twice")
        values = [
            value for each in self.keys for value in (each.site.encode(), each.channel, each.mask)
        ]
        self.context = hashlib.sha256(_ROSTER + pack(session.to_bytes(), *values)).digest()
        """The digest of session and roster, 32 bytes."""

    def __len__(self) -> int:
        """Return the number of clients."""
        return len(self.keys)

    def number(self, site: str) -> int:
        """Return the number of a site's client.

        :raises UpdateRejected: when it is not on the roster.
        """
        if site not in self.sites:
            raise UpdateRejected(f"the roster lacks {site!r}")
        return self.sites.index(site)
