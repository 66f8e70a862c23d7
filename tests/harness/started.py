"""What a test starts and stops: a context manager."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Started(ABC):
    """Is started when the block begins, and stopped when it ends or the start fails."""

    @abstractmethod
    def start(self) -> Self:
        """Start."""

    @abstractmethod
    def stop(self) -> None:
        """Stop, also after a start that failed."""

    def __enter__(self) -> Self:
        """Start."""
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *exception: object) -> None:
        """Stop."""
        self.stop()
