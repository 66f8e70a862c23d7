"""Calls over one channel: each with a deadline, each failing in our own errors."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from fedlearn.backoff import retry
from fedlearn.errors import Throttled
from fedlearn.wire.failure import UNANSWERED, failure_of

import grpc  # isort: skip  (the channel module sets gRPC's verbosity first)

__all__ = ["ADMIT_SECONDS", "CALL_SECONDS", "Calls"]

CALL_SECONDS: Final = 15.0
"""How long an ordinary call may take."""

ADMIT_SECONDS: Final = 60.0
"""How long a call may take in which evidence is verified, or a bundle sent."""

_T = TypeVar("_T")


class Calls:
    """A channel that is closed as a context; ``other`` names whom it reaches, for errors."""

    attempts = 6
    """How often a call that may be made twice is made while nobody answers."""

    def __init__(self, channel: grpc.Channel, other: str) -> None:
        self._channel = channel
        self._other = other

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the channel."""
        self.close()

    def close(self) -> None:
        """Close the channel; calls that run end."""
        self._channel.close()

    def _once(self, method: Callable[..., _T], request: Any, seconds: float = CALL_SECONDS) -> _T:
        """Make a call.

        :raises FedlearnError: as the other side raised it, or a TransportError.
        """
        try:
            return method(request, timeout=seconds)
        except grpc.RpcError as error:
            raise failure_of(error, self._other) from None

    def _when_taken(self, method: Callable[..., _T], request: Any) -> _T:
        """Make a call that may not be made twice; repeat it only where it was not looked at."""
        return retry(
            lambda: self._once(method, request, ADMIT_SECONDS),
            failures=(Throttled,),
            attempts=self.attempts,
        )

    def _retry(self, method: Callable[..., _T], request: Any) -> _T:
        """Make a call that may be made twice; repeat it while nobody takes it."""
        return retry(
            lambda: self._once(method, request), failures=UNANSWERED, attempts=self.attempts
        )
