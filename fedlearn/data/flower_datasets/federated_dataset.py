"""``FederatedDataset`` with the constructor and the methods of ``flwr_datasets``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedlearn import extras
from fedlearn.data.flower_datasets.partitioner import IidPartitioner, Partitioner
from fedlearn.errors import ConfigError

__all__ = ["FederatedDataset"]

Preprocessor = Callable[[Any], Any] | Mapping[str, tuple[str, ...]]


class FederatedDataset:
    """A data set whose splits are divided among partitions. It is loaded when it is first used.

    ``dataset``, ``subset`` and other keywords are those of ``datasets.load_dataset``.
    ``partitioners`` has for a split a partitioner, or the number of IID partitions.
    ``preprocessor`` is a function of the ``DatasetDict``, or names for a new split those that are
    joined into it. Every split is shuffled by ``seed`` before that, unless ``shuffle`` is False.
    """

    def __init__(
        self,
        *,
        dataset: str,
        subset: str | None = None,
        preprocessor: Preprocessor | None = None,
        partitioners: Mapping[str, Partitioner | int],
        shuffle: bool = True,
        seed: int | None = 42,
        **load_dataset_kwargs: Any,
    ) -> None:
        given = [each for each in partitioners.values() if isinstance(each, Partitioner)]
        if len(set(map(id, given))) < len(given):
            raise ValueError("one partitioner is given for two splits; each needs its own")
        self._name = dataset
        self._subset = subset
        self._preprocessor = preprocessor
        self._partitioners = {
            split: each if isinstance(each, Partitioner) else IidPartitioner(each)
            for split, each in partitioners.items()
        }
        self._shuffle = shuffle
        self._seed = seed
        self._keywords = load_dataset_kwargs
        self._loaded: Any = None

    @property
    def partitioners(self) -> dict[str, Partitioner]:
        """The partitioner of each split, with its data set assigned."""
        for split in self._partitioners:
            self._assigned(split)
        return self._partitioners

    def load_partition(self, partition_id: int, split: str | None = None) -> Any:
        """Return one partition of a split, a ``datasets.Dataset``.

        :raises ValueError: for a split without a partitioner; no split can be named only where one
            has a partitioner.
        """
        if split is None:
            if len(self._partitioners) != 1:
                raise ValueError(
                    f"name the split; these are divided: {', '.join(self._partitioners)}"
                )
            split = next(iter(self._partitioners))
        if split not in self._partitioners:
            raise ValueError(
                f"the split {split!r} has no partitioner; these have: "
                f"{', '.join(self._partitioners)}"
            )
        return self._assigned(split).load_partition(partition_id)

    def load_split(self, split: str) -> Any:
        """Return a whole split, a ``datasets.Dataset``.

        :raises ValueError: when there is none of that name.
        """
        found = self._splits()
        if split not in found:
            raise ValueError(f"there is no split {split!r}; there are: {', '.join(found)}")
        return found[split]

    def _assigned(self, split: str) -> Partitioner:
        partitioner = self._partitioners[split]
        if not partitioner.is_dataset_assigned():
            partitioner.dataset = self.load_split(split)
        return partitioner

    def _splits(self) -> Any:
        if self._loaded is None:
            datasets: Any = extras.load("datasets", needed_for="flwr_datasets")
            found = datasets.load_dataset(path=self._name, name=self._subset, **self._keywords)
            if not isinstance(found, datasets.DatasetDict):
                raise ConfigError(
                    f"{self._name} was loaded as a {type(found).__name__}; a DatasetDict is "
                    "expected",
                    hint="name no split where the FederatedDataset is made",
                )
            if self._shuffle:
                found = found.shuffle(seed=self._seed)
            self._loaded = self._preprocessed(datasets, found)
        return self._loaded

    def _preprocessed(self, datasets: Any, found: Any) -> Any:
        if self._preprocessor is None:
            return found
        if callable(self._preprocessor):
            return self._preprocessor(found)
        return datasets.DatasetDict(
            {
                name: datasets.concatenate_datasets([found[split] for split in splits])
                for name, splits in self._preprocessor.items()
            }
        )
