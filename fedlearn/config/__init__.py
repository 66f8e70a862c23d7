"""Strict TOML to frozen models: what is written in a file is understood, or refused.

A model is a frozen dataclass whose fields say what may stand there::

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Limits:
        rounds: int = option(whole(1, 10_000))
        deadline_s: float = option(number(1, 86_400), default=600.0)

    limits = read_file(Limits, Path("limits.toml"))

Every fault of a file is reported, one line each, with file, line, key, what was found and what
would be right::

    job.toml:12: rounds: must be a whole number from 1 to 10000, not "ten"

Nothing is guessed and nothing is converted: ``"5"`` is not 5 and 1 is not ``true``.
"""

from __future__ import annotations

from fedlearn.config.kinds import (
    NAME,
    address,
    choice,
    each,
    file_path,
    flag,
    hexadecimal,
    matching,
    name,
    number,
    raw,
    scalar,
    seq,
    table,
    tables,
    text,
    whole,
)
from fedlearn.config.reading import (
    MAX_FILE_BYTES,
    ConfigErrors,
    Impossible,
    Kind,
    Place,
    Wrong,
    file_bytes,
    option,
    read,
    read_file,
    read_table,
    shown,
)
from fedlearn.config.writing import dumps

__all__ = [
    "MAX_FILE_BYTES",
    "NAME",
    "ConfigErrors",
    "Impossible",
    "Kind",
    "Place",
    "Wrong",
    "address",
    "choice",
    "dumps",
    "each",
    "file_bytes",
    "file_path",
    "flag",
    "hexadecimal",
    "matching",
    "name",
    "number",
    "option",
    "raw",
    "read",
    "read_file",
    "read_table",
    "scalar",
    "seq",
    "shown",
    "table",
    "tables",
    "text",
    "whole",
]
