"""Single-use nonces, and how many of them a peer may hold.

The gate is reached without a certificate, so everything here is bounded: nonces per peer
and overall, and requests per second by token buckets. Time is an argument throughout.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from attestation.binding import NONCE_BYTES
from fedlearn.errors import NonceRefused, Throttled

__all__ = [
    "NONCE_LIFETIME",
    "Challenge",
    "ChallengeStore",
    "Limits",
    "Rates",
]

NONCE_LIFETIME: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the gate gives away.

    ``outstanding``, ``outstanding_per_peer``  nonces that are neither used nor stale
    ``rate``, ``burst``                        requests per second over all peers
    ``rate_per_peer``, ``burst_per_peer``      the same for one peer
    ``peers``                                  how many peers are distinguished
    """

    outstanding: int = 4096
    outstanding_per_peer: int = 256
    rate: float = 400.0
    burst: int = 1600
    rate_per_peer: float = 32.0
    burst_per_peer: int = 256
    peers: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """A nonce of 32 bytes, good once, until ``expires``, for one job at one site."""

    nonce: bytes
    job: str
    site: str
    peer: str
    expires: datetime
    verifier_id: bytes = b""


class ChallengeStore:
    """The nonces that are outstanding, and for a while why others are not."""

    def __init__(self, *, limits: Limits | None = None, verifier_id: bytes = b"") -> None:
        self._limits = limits or Limits()
        self._verifier_id = verifier_id
        self._lock = threading.Lock()
        self._open: OrderedDict[bytes, Challenge] = OrderedDict()
        self._gone: OrderedDict[bytes, tuple[datetime, NonceRefused]] = OrderedDict()
        self._held: dict[str, int] = {}

    def issue(self, *, job: str, site: str, peer: str, now: datetime) -> Challenge:
        """Return a fresh challenge.

        :raises Throttled: when ``peer``, or all peers together, hold too many.
        """
        with self._lock:
            self._drop_stale(now)
            if self._held.get(peer, 0) >= self._limits.outstanding_per_peer:
                raise Throttled(
                    f"{self._limits.outstanding_per_peer} nonces are outstanding for this peer",
                    hint=f"use one, or wait {NONCE_LIFETIME.seconds} s",
                )
            if len(self._open) >= self._limits.outstanding:
                raise Throttled("too many nonces are outstanding", hint="try again in some seconds")
            challenge = Challenge(
                nonce=secrets.token_bytes(NONCE_BYTES),
                job=job,
                site=site,
                peer=peer,
                expires=now + NONCE_LIFETIME,
                verifier_id=self._verifier_id,
            )
            self._open[challenge.nonce] = challenge
            self._held[peer] = self._held.get(peer, 0) + 1
            return challenge

    def redeem(self, nonce: bytes, *, job: str, site: str, now: datetime) -> Challenge:
        """Use up ``nonce`` and return its challenge. A refused nonce is used up as well.

        :raises NonceRefused: stating whether it is malformed, replayed, unknown, stale, or
            was given out for another job or site.
        """
        if len(nonce) != NONCE_BYTES:
            raise NonceRefused(f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
        with self._lock:
            self._drop_stale(now)
            challenge = self._open.pop(nonce, None)
            if challenge is None:
                _, refusal = self._gone.get(nonce, (now, None))
                raise refusal or NonceRefused(
                    "the nonce is unknown: never given out, or long stale",
                    hint="ask for a challenge, and answer within 60 s",
                )
            self._retire(
                challenge,
                now,
                NonceRefused(
                    "the nonce was used before: this is a replay",
                    hint="ask for a new challenge for each attempt",
                ),
            )
        if (challenge.job, challenge.site) != (job, site):
            raise NonceRefused(
                f"the nonce was given out for job {challenge.job} at site {challenge.site}"
            )
        return challenge

    def shift(self, by: timedelta) -> None:
        """Move the expiry of every nonce: the clock of the system was changed."""
        with self._lock:
            for nonce, challenge in self._open.items():
                self._open[nonce] = replace(challenge, expires=challenge.expires + by)
            for nonce, (at, refusal) in self._gone.items():
                self._gone[nonce] = (at + by, refusal)

    def __len__(self) -> int:
        """The number of nonces outstanding."""
        with self._lock:
            return len(self._open)

    def _retire(self, challenge: Challenge, now: datetime, refusal: NonceRefused) -> None:
        """Remember why a nonce that was given out is good no more."""
        left = self._held.get(challenge.peer, 0) - 1
        if left > 0:
            self._held[challenge.peer] = left
        else:
            self._held.pop(challenge.peer, None)
        self._gone[challenge.nonce] = (now, refusal)

    def _drop_stale(self, now: datetime) -> None:
        """Retire what is stale. Nonces expire in the order in which they were issued."""
        while self._open:
            first = next(iter(self._open.values()))
            if now < first.expires:
                break
            del self._open[first.nonce]
            refusal = NonceRefused(
                "the nonce is stale", hint="ask for a new challenge and answer within 60 s"
            )
            self._retire(first, now, refusal)
        while self._gone:
            nonce, (moment, _) = next(iter(self._gone.items()))
            if now < moment + 2 * NONCE_LIFETIME and len(self._gone) <= self._limits.outstanding:
                break
            del self._gone[nonce]


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: datetime

    def take(self, *, rate: float, burst: int, now: datetime) -> bool:
        elapsed = max(0.0, (now - self.at).total_seconds())
        self.tokens = min(float(burst), self.tokens + elapsed * rate)
        self.at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


class Rates:
    """Token buckets: one for all peers, and one for each of the most recent ones."""

    def __init__(self, *, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._all: _Bucket | None = None
        self._peers: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, peer: str, *, now: datetime) -> None:
        """Count one request of ``peer``.

        A peer beyond its own rate does not use up what belongs to the others.

        :raises Throttled: when it is one too many.
        """
        limits = self._limits
        with self._lock:
            bucket = self._peers.pop(peer, None) or _Bucket(float(limits.burst_per_peer), now)
            self._peers[peer] = bucket
            while len(self._peers) > limits.peers:
                self._peers.popitem(last=False)
            if not bucket.take(rate=limits.rate_per_peer, burst=limits.burst_per_peer, now=now):
                raise Throttled(
                    "too many requests from this address",
                    hint=f"at most {limits.rate_per_peer:g} a second are answered",
                )
            if self._all is None:
                self._all = _Bucket(float(limits.burst), now)
            if not self._all.take(rate=limits.rate, burst=limits.burst, now=now):
                raise Throttled(
                    "the coordinator has too many requests", hint="try again in some seconds"
                )
