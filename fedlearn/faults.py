"""Everything that is wrong with a job or a request, collected before it is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from attestation.errors import AttestationError
from fedlearn.errors import DiskError, FedlearnError, JobError

__all__ = ["Faults"]

_T = TypeVar("_T")


class Faults:
    """The faults that were found so far."""

    def __init__(self) -> None:
        self._found: list[FedlearnError | AttestationError] = []

    def of(self, check: Callable[[], _T]) -> _T | None:
        """Return what ``check`` returns; ``None``, and a fault more, when it refuses.

        :raises DiskError: when the disk failed: that is no fault of what is checked.
        """
        try:
            return check()
        except DiskError:
            raise
        except (FedlearnError, AttestationError) as error:
            self._found.append(error)
            return None

    def check(self) -> None:
        """Raise what was found, if anything was.

        :raises FedlearnError: the fault, or a JobError with one line for each of several.
        :raises AttestationError: when that is the only fault.
        """
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            hints = dict.fromkeys(error.hint for error in self._found if error.hint)
            raise JobError("\n".join(map(str, self._found)), hint="; ".join(hints))
