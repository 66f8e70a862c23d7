"""The ``[compression]`` table of a job: the form in which updates travel.

::

    [compression]
    update = "int8"          # "none", "bf16", "fp16", "int8" or "topk"
    delta = true             # encode the difference to the model of the round
    error_feedback = true    # add to an update what earlier ones lost
    fraction = 0.01          # for "topk": of the numbers of each array
    arrays = ["lora_*"]      # only these arrays travel; all by default

The page is docs/how-to/compress-updates.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from attestation.config import (
    InconsistentValues,
    choice,
    flag,
    number,
    option,
    seq,
    text,
)

__all__ = ["KINDS", "CompressionSpec"]

KINDS: Final = ("none", "bf16", "fp16", "int8", "topk")
_FEEDBACK: Final = ("int8", "topk")
_FRACTION: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionSpec:
    """The compression of a job's updates.

    ``update``          ``none``: arrays travel as they are. ``bf16``, ``fp16``: in 16 bits.
                        ``int8``: in 8 bits, with one scale for 4,096 numbers. ``topk``: those of
                        the largest magnitude only
    ``delta``           encode the difference to the global model of the round, and not the
                        weights themselves; true by default where numbers are compressed
    ``error_feedback``  each client keeps what compression removes from its update, and adds it
                        to the next one (Karimireddy et al. 2019, arXiv:1901.09847); true by
                        default for ``int8`` and ``topk`` with ``delta``
    ``fraction``        for ``topk``: the part of the numbers of each array that travels; 0.01 by
                        default
    ``arrays``          patterns as of a shell (``*``, ``?``, ``[...]``); only arrays whose names
                        match one travel, the others keep the values of the global model

    After construction ``delta`` and ``error_feedback`` are never None, nor is ``fraction`` for
    ``topk``.

    :raises InconsistentValues: from the constructor, naming the key.

    >>> CompressionSpec(update="topk").fraction, CompressionSpec(update="int8").error_feedback
    (0.01, True)
    >>> CompressionSpec(update="topk", delta=False)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    attestation.config.schema.InconsistentValues: delta: must be true for update = "topk": a ...
    """

    update: str = option(choice(*KINDS), default="none")
    delta: bool | None = option(flag(), default=None)
    error_feedback: bool | None = option(flag(), default=None)
    fraction: float | None = option(
        number(1e-6, 1, expected="a number from 0.000001 to 1"), default=None
    )
    arrays: tuple[str, ...] = option(seq(text(most=512), most=1000, unique=True), default=())

    def __post_init__(self) -> None:
        if faults := [((key,), fault) for key, fault in self._faults()]:
            raise InconsistentValues(*faults)
        if self.delta is None:
            object.__setattr__(self, "delta", self.update != "none")
        if self.error_feedback is None:
            feedback = self.update in _FEEDBACK and self.delta
            object.__setattr__(self, "error_feedback", feedback)
        if self.fraction is None and self.update == "topk":
            object.__setattr__(self, "fraction", _FRACTION)

    def _faults(self) -> Iterator[tuple[str, str]]:
        if self.update == "none":
            for key in ("delta", "error_feedback"):
                if getattr(self, key):
                    yield key, 'needs an update = that compresses; with "none" numbers are exact'
        elif self.delta is False:
            if self.update == "topk":
                yield (
                    "delta",
                    'must be true for update = "topk": a number that does not travel is zero',
                )
            if self.error_feedback:
                yield "error_feedback", "needs delta = true: what it keeps is part of a difference"
        if self.fraction is not None and self.update != "topk":
            yield "fraction", f'only for update = "topk", not "{self.update}"'

    @property
    def active(self) -> bool:
        """Whether updates travel in another form than without this table."""
        return self.update != "none" or bool(self.arrays)

    @property
    def title(self) -> str:
        """The compression in a few words, as reports show it; empty for none."""
        if not self.active:
            return ""
        words = [self.update if self.fraction is None else f"{self.update} {self.fraction:g}"]
        if self.update != "none" and not self.delta:
            words.append("of the weights")
        if self.error_feedback:
            words.append("with error feedback")
        if self.arrays:
            words.append(f"of {', '.join(self.arrays)}")
        return " ".join(words)

    def travels(self, name: str) -> bool:
        """Whether the array ``name`` of the model travels in an update."""
        return not self.arrays or any(fnmatchcase(name, pattern) for pattern in self.arrays)

    def names(self, model: Iterable[str]) -> list[str]:
        """Return the names of the model's arrays that travel, in their order."""
        return [name for name in model if self.travels(name)]

    def private_faults(self) -> Iterator[tuple[str, str]]:
        """Yield the keys that ``[privacy]`` excludes, each with the reason."""
        if self.update != "none" and not self.delta:
            yield (
                "delta",
                "must be true with [privacy]: what compression changes in the weights is not "
                "part of the clipped difference; remove the key, or remove [privacy]",
            )
        if self.error_feedback:
            yield (
                "error_feedback",
                "must be false with [privacy]: an update would hold parts of earlier ones beside "
                "its own clipped difference; set error_feedback = false, or remove [privacy]",
            )

    def to_mapping(self) -> dict[str, Any]:
        """Return the table, JSON-ready, with defaults written out and without keys that are None.

        Two equal specs give equal mappings, so it can enter a canonical digest.
        """
        values = dataclasses.asdict(self) | {"arrays": list(self.arrays)}
        return {key: value for key, value in sorted(values.items()) if value is not None}
