"""TOML tables that are read strictly, with messages that name file, line and key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from attestation.config.toml import Path, Source, dotted
from attestation.errors import PolicyError

__all__ = ["Table"]


class Table:
    """One table, read key by key; :meth:`finish` refuses the keys that nobody asked for.

    Every method raises :class:`PolicyError` that names file, line, key and what would be
    right.
    """

    def __init__(self, source: Source, where: str, path: Path = ()) -> None:
        values: Any = source.table
        for step in path:
            values = values[step] if isinstance(step, int) else values.get(step, {})
        self._values: Mapping[str, Any] = values
        self._source = source
        self._where = where
        self._path = path
        self._asked: set[str] = set()

    def error(self, key: str, message: str, *index: int, hint: str = "") -> PolicyError:
        """Return an error about ``key`` of this table, or about an element of its list."""
        path = (*self._path, key, *index)
        line = self._source.line(path)
        where = f"{self._where}:{line}" if line else self._where
        return PolicyError(f"{where}: {dotted((*self._path, key))}: {message}", hint=hint)

    def names(self) -> Iterator[str]:
        """Iterate over the keys as written."""
        return iter(self._values)

    def has(self, key: str) -> bool:
        """Say whether ``key`` is written; asking does not count as reading."""
        self._asked.add(key)
        return key in self._values

    def finish(self, known: Iterable[str] = ()) -> None:
        """Refuse any key that was not asked for, naming the nearest one that exists."""
        expected = sorted(self._asked.union(known))
        for key in self._values:
            if key not in expected:
                near = difflib.get_close_matches(key, expected, n=1)
                guess = f"did you mean {near[0]}?" if near else f"known: {', '.join(expected)}"
                raise self.error(key, f"unknown key; {guess}")

    def table(self, key: str) -> Table:
        """Return the table under ``key``, empty when it is absent."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise self.error(key, f"must be a table, written [{dotted((*self._path, key))}]")
        return self._inner(key)

    def tables(self, key: str, most: int) -> list[Table]:
        """Return the array of tables under ``key``, empty when it is absent."""
        value = self._get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.error(key, f"must be tables, each written [[{dotted((*self._path, key))}]]")
        self._bound(key, value, most)
        return [self._inner(key, index) for index in range(len(value))]

    def flag(self, key: str, *, default: bool) -> bool:
        """Return a boolean."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, not {_shown(value)}")
        return value

    def integer(self, key: str, *, default: int, least: int, most: int) -> int:
        """Return an integer within bounds."""
        return self._integer(key, self._get(key, default), least, most)

    def integers(self, key: str, least: int, most: int, count: int) -> tuple[int, ...]:
        """Return a list of integers within bounds, sorted and without repetition."""
        values = self._list(key, (), count)
        return tuple(
            sorted({self._integer(key, item, least, most, i) for i, item in enumerate(values)})
        )

    def text(
        self,
        key: str,
        *,
        default: str | None = None,
        most: int = 1024,
        pattern: re.Pattern[str] | None = None,
        what: str = "text",
    ) -> str:
        """Return a string; without a default it must be written."""
        if default is None and key not in self._values:
            raise self._missing(key, f"write {key} = … with {what}")
        return self._text(key, self._get(key, default), most, pattern, what)

    def texts(
        self,
        key: str,
        count: int,
        *,
        most: int = 128,
        pattern: re.Pattern[str] | None = None,
        what: str = "text",
    ) -> tuple[str, ...]:
        """Return a list of strings, sorted and without repetition."""
        values = self._list(key, (), count)
        return tuple(
            sorted({self._text(key, item, most, pattern, what, i) for i, item in enumerate(values)})
        )

    def choice(self, key: str, options: tuple[str, ...]) -> str | None:
        """Return one of ``options``, or ``None`` when the key is absent."""
        value = self._get(key, None)
        return None if value is None else self._choice(key, value, options)

    def choices(
        self, key: str, options: tuple[str, ...], default: tuple[str, ...] = ()
    ) -> tuple[str, ...]:
        """Return several of ``options``, sorted and without repetition."""
        values = self._list(key, default, 1024)
        return tuple(sorted({self._choice(key, item, options, i) for i, item in enumerate(values)}))

    def hexadecimal(self, key: str, least: int, most: int) -> bytes:
        """Return bytes written in hex, of ``least`` to ``most`` bytes; it must be written."""
        if key not in self._values:
            raise self._missing(key, f'write {key} = "…" in hex')
        return self._hex(key, self._get(key, None), least, most)

    def hexadecimals(self, key: str, least: int, most: int, count: int) -> tuple[bytes, ...]:
        """Return a list of bytes written in hex, sorted and without repetition."""
        values = self._list(key, (), count)
        return tuple(
            sorted({self._hex(key, item, least, most, i) for i, item in enumerate(values)})
        )

    def moment(self, key: str) -> datetime | None:
        """Return a time with a zone, as UTC, or ``None`` when the key is absent."""
        value = self._get(key, None)
        if value is None:
            return None
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                value = None
        if not isinstance(value, datetime) or value.tzinfo is None:
            raise self.error(key, "must be a time with its zone, such as 2026-07-01T00:00:00Z")
        try:
            return value.astimezone(UTC)
        except OverflowError:
            raise self.error(key, "is outside of the years 1 to 9999 in UTC") from None

    def _missing(self, key: str, right: str) -> PolicyError:
        written = [name for name in self._values if name not in self._asked]
        if near := difflib.get_close_matches(key, written, n=1):
            return self.error(near[0], f"unknown key; did you mean {key}?")
        return self.error(key, f"is missing; {right}")

    def _get(self, key: str, default: Any) -> Any:
        self._asked.add(key)
        return self._values.get(key, default)

    def _inner(self, *steps: str | int) -> Table:
        return Table(self._source, self._where, (*self._path, *steps))

    def _list(self, key: str, default: tuple[Any, ...], count: int) -> list[Any]:
        value = self._get(key, list(default))
        if not isinstance(value, list):
            raise self.error(key, f"must be a list, not {_shown(value)}")
        self._bound(key, value, count)
        return value

    def _bound(self, key: str, value: list[Any], most: int) -> None:
        if len(value) > most:
            raise self.error(key, f"has {len(value)} items, at most {most} are read")

    def _integer(self, key: str, value: object, least: int, most: int, *index: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.error(
                key, f"must be a whole number from {least} to {most}, not {_shown(value)}", *index
            )
        return value

    def _text(
        self,
        key: str,
        value: object,
        most: int,
        pattern: re.Pattern[str] | None,
        what: str,
        *index: int,
    ) -> str:
        if not isinstance(value, str) or len(value) > most or not value.isprintable():
            raise self.error(
                key, f"must be {what} of at most {most} characters on one line", *index
            )
        if pattern is not None and not pattern.fullmatch(value):
            raise self.error(key, f"must be {what}, not {_shown(value)}", *index)
        return value

    def _choice(self, key: str, value: object, options: tuple[str, ...], *index: int) -> str:
        if isinstance(value, str) and value in options:
            return value
        near = difflib.get_close_matches(str(value), options, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise self.error(
            key, f"{_shown(value)} is not one of {', '.join(options)}{guess}", *index, *index
        )

    def _hex(self, key: str, value: object, least: int, most: int, *index: int) -> bytes:
        if not isinstance(value, str) or not re.fullmatch(r"(?:[0-9A-Fa-f]{2})*", value):
            raise self.error(key, f"must be text in hex, not {_shown(value)}", *index)
        if not least <= len(value) // 2 <= most:
            size = f"{least}" if least == most else f"{least} to {most}"
            raise self.error(key, f"must have {size} bytes, not {len(value) // 2}", *index)
        return bytes.fromhex(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
