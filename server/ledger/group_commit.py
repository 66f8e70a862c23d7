"""Group commit: what several threads bring while one commit runs is committed together.

A commit costs one synchronization of the disk, whatever it contains. So a thread that comes
while another one commits waits, and one of those that wait then commits for all of them, in the
order in which they came (DeWitt et al., *Implementation Techniques for Main Memory Database
Systems*, SIGMOD 1984).

The page is docs/adr/0040-off-the-path.md.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

__all__ = ["MOST_AT_ONCE", "GroupCommit"]

MOST_AT_ONCE: Final = 256
"""How much one commit takes at most. What came later is part of the next one."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class _Waiting(Generic[Item, Answer]):
    """What one thread brought: ``answers`` has one answer once it is committed."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.answers: list[Answer] = []
        self.error: BaseException | None = None

    @property
    def done(self) -> bool:
        return bool(self.answers) or self.error is not None


class GroupCommit(Generic[Item, Answer]):
    """Commits what threads bring. Safe to use from many threads.

    :param commit: makes all of a list durable, or nothing of it, and returns an answer for each
        item. One thread at a time calls it.
    """

    def __init__(self, commit: Callable[[Sequence[Item]], Sequence[Answer]]) -> None:
        self._commit = commit
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting[Item, Answer]] = deque()
        self._committing = False

    def add(self, item: Item) -> Answer:
        """Return the answer for ``item`` after the commit that contains it.

        Raises what that commit raised. All that it contained get the same error.
        """
        mine = _Waiting[Item, Answer](item)
        with self._changed:
            self._waiting.append(mine)
        while burst := self._next(mine):
            self._run(burst)
        if mine.error is not None:
            raise mine.error
        return mine.answers[0]

    def _next(self, mine: _Waiting[Item, Answer]) -> list[_Waiting[Item, Answer]]:
        """Wait until ``mine`` is done, or return what the caller has to commit."""
        with self._changed:
            self._changed.wait_for(lambda: mine.done or not self._committing)
            if mine.done:
                return []
            self._committing = True
            count = min(len(self._waiting), MOST_AT_ONCE)
            return [self._waiting.popleft() for _ in range(count)]

    def _run(self, burst: Sequence[_Waiting[Item, Answer]]) -> None:
        try:
            answers = self._commit([each.item for each in burst])
            answered, error = list(zip(burst, answers, strict=True)), None
        except BaseException as raised:  # noqa: BLE001 (each caller of the burst raises it)
            answered, error = [], raised
        with self._changed:
            for each, answer in answered:
                each.answers.append(answer)
            for each in burst:
                each.error = error
            self._committing = False
            self._changed.notify_all()
