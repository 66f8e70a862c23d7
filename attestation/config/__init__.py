"""Reads TOML strictly into frozen models: a file is understood as a whole, or refused.

A model is a frozen dataclass whose fields state what the file may have::

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Limits:
        rounds: int = option(whole(1, 10_000))
        deadline_s: float = option(number(1, 86_400), default=600.0)

    limits = read(Limits, data, where="limits.toml")

Every fault of a file is reported, one line each, with the file, the line, the key, what is expected
and what was found::

    job.toml:12: rounds: must be a whole number from 1 to 10000, not "ten"

Nothing is guessed and nothing is converted: ``"5"`` is not 5 and 1 is not ``true``.
:func:`describe` lists the keys of a model for documentation.

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True, kw_only=True)
... class Limits:
...     rounds: int = option(whole(1, 10_000))
...     deadline_s: float = option(number(1, 86_400), default=600.0)
>>> read(Limits, b"rounds = 3", where="a.toml")
Limits(rounds=3, deadline_s=600.0)
>>> read(Limits, b'rounds = "ten"', where="a.toml")  # doctest: +ELLIPSIS
Traceback (most recent call last):
    ...
attestation.config.schema.SchemaError: a.toml:1: rounds: must be a whole number from 1 to ...

The pages are docs/reference/api/config.md and docs/adr/0022-toml.md.
"""

from __future__ import annotations

from attestation.config.commented import commented
from attestation.config.fields import (
    choice,
    each,
    file_path,
    flag,
    hexadecimal,
    line,
    mapped,
    matching,
    number,
    octets,
    plain,
    scalar,
    seq,
    simple,
    sorted_set,
    table,
    tables,
    text,
    timestamp,
    whole,
)
from attestation.config.schema import (
    Fault,
    FieldType,
    InconsistentValues,
    InvalidValue,
    KeyDescription,
    ReadContext,
    SchemaError,
    describe,
    model_at,
    option,
    parse,
    read,
    shown,
)
from attestation.config.writing import dumps, to_plain

__all__ = [
    "Fault",
    "FieldType",
    "InconsistentValues",
    "InvalidValue",
    "KeyDescription",
    "ReadContext",
    "SchemaError",
    "choice",
    "commented",
    "describe",
    "dumps",
    "each",
    "file_path",
    "flag",
    "hexadecimal",
    "line",
    "mapped",
    "matching",
    "model_at",
    "timestamp",
    "number",
    "octets",
    "option",
    "parse",
    "plain",
    "read",
    "scalar",
    "seq",
    "shown",
    "simple",
    "sorted_set",
    "table",
    "tables",
    "text",
    "to_plain",
    "whole",
]
