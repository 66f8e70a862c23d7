"""The privacy budget of a site's data on disk: reserved, charged and settled, durably.

``privacy-budget`` in the site's state, a :class:`edge.agent.sealed_file.SealedFile`. What a job
may cost is reserved before its client is started. A client asks before an update leaves, and the
charge is on disk before the client receives the answer. What was reserved and not used is released
when the job has ended here. So a crash at any moment leaves a file that states at least what has
left the site.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Final

from edge.agent.data_budget import BudgetAccounts, Charge, again, limits_on, new_charge
from edge.agent.sealed_file import MonotonicCounter, SealedFile
from edge.config.site import SiteConfig
from fedlearn.errors import FedlearnError, PrivacyError
from fedlearn.job.spec import JobSpec

__all__ = ["FILE", "BudgetStore"]

_LOG = logging.getLogger(__name__)
FILE: Final = "privacy-budget"
_MAX_QUESTION_CHARS: Final = 128


class BudgetStore:
    """The budget of one site; safe to use from many threads.

    Every method raises what :class:`edge.agent.sealed_file.SealedFile` raises.
    """

    def __init__(
        self,
        config: SiteConfig,
        key: bytes,
        *,
        counter: MonotonicCounter | None = None,
        unbound: bool = False,
    ) -> None:
        self._config = config
        self._path: Path = config.state / FILE
        self._file = SealedFile(self._path, key, counter=counter, unbound=unbound)
        self._lock = threading.Lock()

    def book(self) -> BudgetAccounts:
        """Return what is charged now."""
        with self._lock:
            return self._read()

    def reserve(self, spec: JobSpec, *, place: str, assignment: str) -> None:
        """Reserve what a job may cost; do it before its client is started.

        A job that was here before continues with its own charge.

        :raises PrivacyError: when it does not fit into every budget of its data.
        """
        with self._lock:
            book = self._read()
            first = new_charge(self._config, spec, place, assignment)
            charge = again(first, book.of(first.digest, place))
            self._check(book, charge)
            self._write(book.put(charge))

    def charge(self, assignment: str, question: str) -> None:
        """Charge the update that answers ``question``; do it before the update leaves.

        The same question, asked again at once, is charged once.

        :raises PrivacyError: when no job runs under this assignment, or the update does not fit
            into the budget. It must not leave then.
        """
        if not 0 < len(question) <= _MAX_QUESTION_CHARS or not question.isascii():
            raise PrivacyError(
                "the question that an update answers must have a name of 1 to 128 ASCII characters"
            )
        with self._lock:
            book = self._read()
            known = book.running(assignment)
            if known is None:
                raise PrivacyError(f"nothing is reserved for the assignment {assignment}")
            if known.last == question:
                return
            after = replace(known, spent=known.spent + 1, last=question)
            if after.rounds > known.rounds:
                self._check(book, after)
            self._write(book.put(after))

    def settle(self, assignment: str) -> None:
        """Release what a job that has ended did not use."""
        with self._lock:
            book = self._read()
            known = book.running(assignment)
            if known is not None:
                self._write(book.put(replace(known, assignment="")))

    def settle_or_log(self, assignment: str) -> None:
        """Settle as :meth:`settle` does, and log an error of the file.

        What could not be settled stays reserved until an agent starts that can settle it.
        """
        try:
            self.settle(assignment)
        except FedlearnError as error:
            _LOG.error("the privacy budget cannot be settled: %s", error)

    def settle_others(self, running: Collection[str]) -> None:
        """Settle every job that does not run any more, after an agent's restart."""
        with self._lock:
            before = book = self._read()
            for charge in before.charges:
                if charge.assignment and charge.assignment not in running:
                    book = book.put(replace(charge, assignment=""))
            if book != before:
                self._write(book)

    def reset(self) -> None:
        """Replace the file by empty accounts, whatever it contained."""
        with self._lock:
            self._file.begin_anew(BudgetAccounts().to_bytes())

    def _check(self, book: BudgetAccounts, charge: Charge) -> None:
        for limit in limits_on(self._config, charge):
            if why := book.exceeded(limit, charge):
                raise PrivacyError(why)

    def _read(self) -> BudgetAccounts:
        data = self._file.read()
        return BudgetAccounts() if data is None else BudgetAccounts.parse(data, str(self._path))

    def _write(self, book: BudgetAccounts) -> None:
        self._file.write(book.to_bytes())
