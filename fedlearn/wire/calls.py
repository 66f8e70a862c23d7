"""Calls over one channel, each with a deadline; failures are errors of :mod:`fedlearn.errors`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc

from fedlearn.backoff import Backoff, retry
from fedlearn.errors import Throttled, TransportError
from fedlearn.wire.failure import UNANSWERED, failure_of
from fedlearn.wire.unreachable import NotConnected

__all__ = ["ADMIT_SECONDS", "CALL_SECONDS", "Calls"]

CALL_SECONDS: Final = 15.0
"""The deadline of an ordinary call, in seconds."""

ADMIT_SECONDS: Final = 60.0
"""The deadline of a call in which evidence is verified or a bundle is sent, in seconds."""

_CONNECT_ATTEMPTS: Final = 3

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
        """Make a call that may not be made twice; repeat it only while no connection comes about.

        :raises FedlearnError: as the other side raised it, or a TransportError.
        """
        return retry(
            lambda: self._call(method, request, seconds),
            failures=(NotConnected,),
            attempts=min(self.attempts, _CONNECT_ATTEMPTS),
            # The channel itself pauses for 0.2 s after its first attempt.
            backoff=Backoff(first=0.4),
        )

    def _call(self, method: Callable[..., _T], request: Any, seconds: float) -> _T:
        try:
            return method(request, timeout=seconds)
        except grpc.RpcError as error:
            raise failure_of(error, self._other) from None

    def _when_taken(self, method: Callable[..., _T], request: Any) -> _T:
        """Make a call that may not be made twice; repeat it only if it was not processed."""
        return retry(
            lambda: self._call(method, request, ADMIT_SECONDS),
            failures=(Throttled, NotConnected),
            attempts=self.attempts,
        )

    def _retry(self, method: Callable[..., _T], request: Any) -> _T:
        """Make a call that may be made twice; repeat it while nobody answers."""
        return retry(
            lambda: self._call(method, request, CALL_SECONDS),
            failures=UNANSWERED,
            attempts=self.attempts,
        )

    def _stream(self, call: Any) -> Generator[Any, None, None]:
        """Yield the messages of a streaming call; cancel it when no more are read.

        :raises FedlearnError: as the other side raised it, or a TransportError.
        """
        try:
            yield from call
        except grpc.RpcError as error:
            raise failure_of(error, self._other) from None
        finally:
            call.cancel()

    def _joined(self, call: Any, *, limit: int, what: str) -> bytes:
        """Return what the chunks of a streaming call make together.

        :raises TransportError: when that is longer than ``limit`` bytes.
        """
        data = bytearray()
        with contextlib.closing(self._stream(call)) as chunks:
            for chunk in chunks:
                if len(data) + len(chunk.data) > limit:
                    raise TransportError(f"{what} is longer than {limit} bytes")
                data += chunk.data
        return bytes(data)
