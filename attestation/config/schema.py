"""Schemas: a frozen dataclass declares the keys of a TOML file, which is then read strictly.

See :mod:`attestation.config` for an example. :func:`read` finds every fault of a document, each
with its line; :func:`describe` lists the keys of a schema for documentation.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

from attestation.config import toml
from attestation.config.writing import default_text
from attestation.errors import AttestationError

__all__ = [
    "Fault",
    "FieldType",
    "InconsistentValues",
    "InvalidValue",
    "KeyDescription",
    "ReadContext",
    "SchemaError",
    "convert_at",
    "describe",
    "model_at",
    "option",
    "parse",
    "read",
    "shown",
]

_MAX_FAULTS: Final = 20
_TYPE: Final = "attestation.config.type"
_REQUIRED: Final = object()
_ENTRY: Final = re.compile(r"((?:``[\w.-]+``(?:, )?)+)(?: {2,}(\S.*)|$)")

T = TypeVar("T")
M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: where (``file:line``), at which dotted key, and what."""

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.where, self.key, self.message)))


class SchemaError(AttestationError):
    """A document does not match its schema.

    ``faults`` has one entry for each fault, in the order of the document, the first 20 at most.
    """

    def __init__(self, *faults: Fault) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults


class InconsistentValues(AttestationError):
    """Values that are valid one by one and contradict each other. Raised by ``__post_init__``.

    ``faults`` are pairs of a path below the model and what is wrong with it.
    """

    def __init__(self, *faults: tuple[toml.Path, str]) -> None:
        lines = (": ".join(filter(None, (toml.dotted(at), message))) for at, message in faults)
        super().__init__("\n".join(lines))
        self.faults = faults


class InvalidValue(ValueError):
    """A value is not of its type. The text states what it must be, or what is wrong with it."""


class ReadContext:
    """The document that is read, and the faults found so far.

    ``base`` is the folder that relative paths in the document start from, an absolute path.
    """

    def __init__(self, source: toml.Source, where: str, base: Path) -> None:
        self._source = source
        self._where = where
        self._faults: list[tuple[int, Fault]] = []
        self.base = base

    @property
    def fault_count(self) -> int:
        """How many faults were found so far."""
        return len(self._faults)

    def add(self, path: toml.Path, message: str) -> None:
        """Record a fault at ``path``."""
        line = self._source.line(path)
        where = f"{self._where}:{line}" if line else self._where
        self._faults.append((line, Fault(where, toml.dotted(path), message)))

    def raise_faults(self) -> None:
        """Raise what was recorded.

        :raises SchemaError: when there is any.
        """
        if found := [fault for _, fault in sorted(self._faults, key=lambda item: item[0])]:
            raise SchemaError(*found[:_MAX_FAULTS])


@dataclass(frozen=True, slots=True)
class FieldType(Generic[T]):
    """Which values a key may have. ``expected`` completes the sentence "must be ...".

    ``convert`` returns the value at a path; it records faults below, and raises
    :class:`InvalidValue`. ``model`` is the schema of tables below, whose keys follow ``suffix``.
    ``json`` is a JSON Schema (draft 2020-12) that every such value meets; for a ``model`` see
    ``contents`` of :class:`KeyDescription`. Its patterns are of RE2.
    """

    expected: str
    convert: Callable[[object, toml.Path, ReadContext], T]
    model: type | None = None
    suffix: str = ""
    json: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def option(
    kind: FieldType[T],
    *,
    default: object = _REQUIRED,
    factory: Callable[[], object] | None = None,
    key: str = "",
    required: bool = False,
) -> T:
    """Declare a field of a model. Without a default or a factory, the key is required.

    ``key`` is its name in the file, where that differs from the field's. A dotted one stands in
    a table: ``freshness.max_age_s`` is the key ``max_age_s`` of ``[freshness]``. With
    ``required`` a default is for the constructor only, and the key is required in a file.
    """
    required = required or (default is _REQUIRED and factory is None)
    metadata = {_TYPE: (kind, key, required)}
    if factory is not None:
        return cast("T", dataclasses.field(default_factory=factory, metadata=metadata))
    if default is _REQUIRED:
        return cast("T", dataclasses.field(metadata=metadata))
    return cast("T", dataclasses.field(default=default, metadata=metadata))


# --- reading --------------------------------------------------------------------------


def parse(document: bytes | str, *, where: str) -> toml.Source:
    """Return the tables of a TOML document; ``where`` is its name in messages.

    :raises SchemaError: when it is not TOML, naming the line.
    """
    try:
        return toml.parse(document)
    except toml.TomlError as error:
        line = f":{error.line}" if error.line else ""
        raise SchemaError(Fault(f"{where}{line}", "", str(error))) from None


def read(
    model: type[M],
    document: bytes | str | toml.Source | Mapping[str, object],
    *,
    where: str,
    base: Path | None = None,
) -> M:
    """Return a TOML document as a ``model``; ``where`` is its name in messages.

    Relative paths start from ``base``, or else from the working directory; the paths of the model
    are absolute. A mapping is a
    document that was not read from a file, JSON for example; it has no line numbers.

    :raises SchemaError: naming file, line and key of everything that is wrong.
    """
    if isinstance(document, bytes | str):
        document = parse(document, where=where)
    elif isinstance(document, Mapping):
        document = toml.Source(table=dict(document), lines={})
    context = ReadContext(document, where, (base or Path()).absolute())
    try:
        found = model_at(model, document.table, (), context)
    except RecursionError:
        raise SchemaError(Fault(where, "", "nests too deeply")) from None
    context.raise_faults()
    return cast("M", found)


def model_at(
    model: type[M],
    value: object,
    path: toml.Path,
    context: ReadContext,
    *,
    without: Sequence[str] = (),
) -> M | None:
    """Return a table as a ``model``, or None after recording everything that is wrong in it.

    The keys in ``without`` are not known here.
    """
    before = context.fault_count
    keys = {key: item for key, item in _keys(cast("Any", model)).items() if key not in without}
    values = _values(keys, value, path, context)
    if context.fault_count > before:
        return None
    try:
        return model(**values)
    except InconsistentValues as error:
        for inner, message in error.faults:
            context.add((*path, *inner), message)
        return None


def convert_at(kind: FieldType[Any], value: object, path: toml.Path, context: ReadContext) -> Any:
    """Return a value as its type has it, or None after recording what is wrong."""
    try:
        return kind.convert(value, path, context)
    except InvalidValue as error:
        context.add(path, str(error) or f"must be {kind.expected}, not {shown(value)}")
        return None


def unknown_key(
    key: str, known: Sequence[str], path: toml.Path, context: ReadContext
) -> str | None:
    """Record that ``key`` is not one of ``known``, and return the most similar one."""
    near = next(iter(difflib.get_close_matches(key, known, n=1)), None)
    hint = f"did you mean {near!r}?" if near else f"known here: {', '.join(sorted(known))}"
    context.add((*path, key), f"unknown key; {hint}")
    return near


def shown(value: object) -> str:
    """Return a TOML value as it would be written, shortened."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an empty list" if not value else "a list"
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, str):
        short = value if len(value) <= 40 else value[:39] + "…"
        return '"' + short.encode("unicode_escape").decode().replace('"', '\\"') + '"'
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of more than 60 digits"
    return repr(value)


@dataclass(frozen=True, slots=True)
class _Key:
    name: str
    kind: FieldType[Any]
    required: bool


_Keys = dict[str, "_Key | _Keys"]


@functools.cache
def _keys(model: Any) -> _Keys:
    found: _Keys = {}
    for item in _options(model):
        kind, key, required = item.metadata[_TYPE]
        *groups, last = (key or item.name).split(".")
        table: Any = found
        for group in groups:
            table = table.setdefault(group, {})
        table[last] = _Key(item.name, kind, required)
    return found


def _options(model: Any) -> Iterator[dataclasses.Field[Any]]:
    return (item for item in dataclasses.fields(model) if _TYPE in item.metadata)


def _values(keys: _Keys, value: object, path: toml.Path, context: ReadContext) -> dict[str, Any]:
    """Return the values of a model's fields in a table and the tables below."""
    if not isinstance(value, dict):
        wish = f"; write [{toml.dotted(path)}]" if path else ""
        context.add(path, f"must be a table, not {shown(value)}{wish}")
        return {}
    missing = [
        key
        for key, item in keys.items()
        if isinstance(item, _Key) and item.required and key not in value
    ]
    values: dict[str, Any] = {}
    for key in value:
        if key not in keys and (near := unknown_key(key, list(keys), path, context)) in missing:
            missing.remove(near)
    for key, item in keys.items():
        if not isinstance(item, _Key):
            values |= _values(item, value.get(key, {}), (*path, key), context)
        elif key in value:
            values[item.name] = convert_at(item.kind, value[key], (*path, key), context)
        elif key in missing:
            context.add(path, f"needs the key {key!r}: {item.kind.expected}")
    return values


# --- documentation --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeyDescription:
    """One key of a schema.

    ``table``     dotted name of the table that it is in; ``[]`` follows an array of tables,
                  ``NAME`` stands for any key
    ``key``       its name there
    ``type``      which values it may have
    ``default``   as it is written in TOML; empty for nothing, None where the key is required
    ``meaning``   its description in the docstring of the model
    ``contents``  for a table that is described as well, its name as a ``table``; else empty
    ``json``      a JSON Schema (draft 2020-12) that every value meets, without ``contents``
    """

    table: str
    key: str
    type: str
    default: str | None
    meaning: str
    contents: str = ""
    json: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def describe(model: type, table: str = "") -> Iterator[KeyDescription]:
    """Yield every key of a schema in the order of declaration, and after a table its keys.

    The meaning of a key is in the docstring of its model: on a line of its own, its name in
    double backquotes, two spaces or more, and the text, which may go on in indented lines. The
    meaning of a table without one is the first paragraph of the docstring of the table's model.
    """
    meanings: dict[str, str] = {}
    for base in reversed(model.__mro__):
        meanings |= _meanings(inspect.cleandoc(base.__doc__ or ""))
    for item in _options(model):
        kind, key, required = item.metadata[_TYPE]
        path = ".".join(filter(None, (table, key or item.name)))
        above, _, name = path.rpartition(".")
        contents = path + kind.suffix if kind.model is not None else ""
        meaning = meanings.get(item.name, "")
        if kind.model is not None and not meaning:
            meaning = " ".join((inspect.getdoc(kind.model) or "").split("\n\n")[0].split())
        default = "" if item.default is MISSING else default_text(item.default)
        yield KeyDescription(
            above, name, kind.expected, None if required else default, meaning, contents, kind.json
        )
        if kind.model is not None:
            yield from describe(kind.model, contents)


def _meanings(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        if entry := _ENTRY.fullmatch(line):
            names = re.findall(r"[\w.-]+", entry[1])
            found |= dict.fromkeys(names, entry[2] or "")
        elif line.startswith(" "):
            found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
        else:
            names = []
    return found
