"""The partitioners of ``flwr_datasets.partitioner`` that Flower's examples use most."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from fedlearn.data import partition
from fedlearn.data.distinct import Parts, distinct, members
from fedlearn.errors import ConfigError

__all__ = ["DirichletPartitioner", "IidPartitioner", "NaturalIdPartitioner", "Partitioner"]


class Partitioner(ABC):
    """Divides the ``datasets.Dataset`` that is assigned to ``dataset``, once."""

    def __init__(self) -> None:
        self._dataset: Any = None
        self._parts: Parts | None = None

    @property
    def dataset(self) -> Any:
        """The data set that is divided.

        :raises AttributeError: when none was assigned.
        """
        if self._dataset is None:
            raise AttributeError("no dataset was assigned to the partitioner")
        return self._dataset

    @dataset.setter
    def dataset(self, value: Any) -> None:
        if self._dataset is not None:
            raise ValueError("a dataset was assigned to the partitioner already")
        self._dataset = value

    def is_dataset_assigned(self) -> bool:
        """Return whether there is a data set."""
        return self._dataset is not None

    @property
    def num_partitions(self) -> int:
        """How many partitions there are."""
        return len(self._all())

    def load_partition(self, partition_id: int) -> Any:
        """Return one partition, a ``datasets.Dataset``.

        :raises ValueError: for a number that is out of range.
        """
        parts = self._all()
        if not 0 <= partition_id < len(parts):
            raise ValueError(f"partition {partition_id}; there are 0 to {len(parts) - 1}")
        return self.dataset.select(parts[partition_id])

    def _all(self) -> Parts:
        if self._parts is None:
            self._parts = self._divided()
        return self._parts

    @abstractmethod
    def _divided(self) -> Parts:
        """Return the rows of each partition."""

    def _column(self, name: str) -> npt.NDArray[Any]:
        if name not in self.dataset.column_names:
            raise ConfigError(
                f"the data set has no column {name!r}",
                hint=f"its columns: {', '.join(self.dataset.column_names)}",
            )
        return np.asarray(self.dataset.with_format(None)[name])


class IidPartitioner(Partitioner):
    """Partitions of consecutive examples, whose sizes differ by one at most.

    ``FederatedDataset`` shuffles the examples before.
    """

    def __init__(self, num_partitions: int) -> None:
        super().__init__()
        self._count = _positive(num_partitions)

    def _divided(self) -> Parts:
        rows = np.arange(len(self.dataset), dtype=np.int64)
        if len(rows) < self._count:
            raise ConfigError(f"{len(rows)} examples cannot be divided among {self._count} parts")
        return tuple(np.array_split(rows, self._count))


class DirichletPartitioner(Partitioner):
    """Partitions of a Dirichlet draw over labels; see :func:`fedlearn.data.partition.dirichlet`.

    ``alpha`` is one number. ``self_balancing`` gives a partition with its even share no
    more classes; NIID-Bench does that, and Flower's default does not.
    """

    def __init__(
        self,
        num_partitions: int,
        partition_by: str,
        alpha: float,
        min_partition_size: int = 10,
        self_balancing: bool = False,
        shuffle: bool = True,
        seed: int | None = 42,
    ) -> None:
        super().__init__()
        self._count = _positive(num_partitions)
        if not isinstance(alpha, int | float) or not alpha > 0:
            raise ConfigError(f"alpha is {alpha!r}; one number above 0 is expected")
        self._by = partition_by
        self._alpha = float(alpha)
        self._least = max(min_partition_size, 1)
        self._balance = self_balancing
        self._shuffle = shuffle
        self._seed = _seed(seed)

    def _divided(self) -> Parts:
        parts = partition.dirichlet(
            self._column(self._by),
            self._count,
            alpha=self._alpha,
            seed=self._seed,
            min_size=self._least,
            balance=self._balance,
        )
        if not self._shuffle:
            return parts
        rng = np.random.default_rng([self._seed, *b"shuffle"])
        return tuple(rng.permutation(part) for part in parts)


class NaturalIdPartitioner(Partitioner):
    """One partition for each value of a column, in ascending order."""

    def __init__(self, partition_by: str) -> None:
        super().__init__()
        self._by = partition_by

    def _divided(self) -> Parts:
        found, index = distinct(self._column(self._by), "ids")
        return members(index, len(found))


def __getattr__(name: str) -> NoReturn:
    if not name.endswith("Partitioner"):
        raise AttributeError(name)
    raise AttributeError(
        f"fedlearn's stand-in for flwr_datasets has no {name}; it has "
        f"{', '.join(sorted(set(__all__) - {'Partitioner'}))}"
    )


def _positive(number: int) -> int:
    if number < 1:
        raise ValueError(f"{number} partitions; 1 or more are expected")
    return number


def _seed(seed: int | None) -> int:
    return int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
