"""Repeated attempts: how long to wait between them, and when to give up.

Exponential backoff with jitter: the bound of a pause doubles with each one. The pause is drawn
between half of its bound and the bound, because many clients lose one coordinator at the same time
and should not all connect again at the same time.

The page is docs/adr/0029-retries.md.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Backoff", "retry"]

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


class Backoff:
    """The pauses between attempts, in seconds. Not thread-safe.

    :param first: the bound of the first pause.
    :param longest: the largest bound.
    :param draw: ``draw(low, high)`` returns a number between the two.
    """

    def __init__(
        self,
        *,
        first: float = 0.1,
        longest: float = 5.0,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._first = first
        self._longest = longest
        self._draw = draw
        self.bound = first
        """The longest that the next pause can be."""

    def next(self, *, longest: float | None = None) -> float:
        """Return the next pause, of at most ``longest`` where that is given."""
        bound = self.bound if longest is None else min(self.bound, longest)
        self.bound = min(2 * self.bound, self._longest)
        return self._draw(bound / 2, bound)

    def reset(self) -> None:
        """Start with the first pause again."""
        self.bound = self._first


def retry(
    call: Callable[[], _T],
    *,
    failures: tuple[type[Exception], ...],
    attempts: int | None = None,
    seconds: float | None = None,
    backoff: Backoff | None = None,
    wait: Callable[[float], object] = time.sleep,
    failed: Callable[[Exception], object] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> _T:
    """Call until the call does not raise one of ``failures``; other errors are raised at once.

    Only for calls that may be made more than once.

    :param attempts: the largest number of attempts.
    :param seconds: the time after the first attempt in which another one may begin.
    :param backoff: the pauses; by default from 0.1 s to 5 s.
    :param wait: waits for a pause. When it returns something true, as
        :meth:`threading.Event.wait` does, no attempt follows.
    :param failed: called with each failure after which another attempt may follow.
    :raises Exception: the last failure, when no attempt follows.
    """
    pauses = Backoff() if backoff is None else backoff
    began, made = clock(), 0
    while True:
        made += 1
        try:
            return call()
        except failures as error:
            if made == attempts or (seconds is not None and clock() - began > seconds):
                raise
            if failed is not None:
                failed(error)
            pause = pauses.next()
            _LOG.info("trying again in %.2f s: %s", pause, error)
            if wait(pause):
                raise
