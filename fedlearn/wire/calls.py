"""Calls over one channel, each with a deadline; failures are errors of :mod:`fedlearn.errors`."""

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
"""The deadline of an ordinary call, in seconds."""

ADMIT_SECONDS: Final = 60.0
"""The deadline of a call in which evidence is verified or a bundle is sent, in seconds."""

_T = TypeVar("_T")


class Calls:
    """A channel, which its context closes; ``other`` names the peer in errors."""

    attempts = 6
    """The number of attempts of a call that may be made twice, while nobody answers."""

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
        """Close the channel; calls in progress end."""
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
        """Make a call that may not be made twice; repeat it only if it was not processed."""
        return retry(
            lambda: self._once(method, request, ADMIT_SECONDS),
            failures=(Throttled,),
            attempts=self.attempts,
        )

    def _retry(self, method: Callable[..., _T], request: Any) -> _T:
        """Make a call that may be made twice; repeat it while nobody answers."""
        return retry(
            lambda: self._once(method, request), failures=UNANSWERED, attempts=self.attempts
        )
