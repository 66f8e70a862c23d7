"""TOML with line numbers.

``tomllib`` reports the place of a syntax error and no other. The scanner here reads the same source
once and records the line of every key and every list element, so that an error about a *value* can
name its line as well. It also bounds the size and the nesting of a file before the parser runs.

A path is a tuple of keys and, below arrays, of indices: ``("reference", 1, "value")``.
Grammar: TOML 1.0.0, https://toml.io/en/v1.0.0.
"""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

__all__ = ["MAX_TOML_BYTES", "Path", "Source", "TomlError", "dotted", "parse"]

MAX_TOML_BYTES: Final = 1024 * 1024
"""Upper bound of one file, checked before it is parsed."""

_MAX_DEPTH: Final = 32
_MAX_LINES: Final = 200_000

Path = tuple[str | int, ...]

_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE: Final = re.compile(r"[ \t]*")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR: Final = re.compile(r"[^,\]}#\n]*")
_BASIC: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_LITERAL: Final = re.compile(r"'[^'\n]*'")
# Up to two quotes may stand directly before the closing three.
_LONG_BASIC: Final = re.compile(r'"""(?:[^"\\]|\\.|"(?!""))*"""(?:"{1,2})?', re.DOTALL)
_LONG_LITERAL: Final = re.compile(r"'''(?:[^']|'(?!''))*'''(?:'{1,2})?")
_ERROR_LINE: Final = re.compile(r"\s*\(at (?:line (\d+), column \d+|end of document)\)$")


class TomlError(ValueError):
    """Bytes that are not TOML. ``line`` counts from 1; 0 when the fault has no line."""

    def __init__(self, message: str, *, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A parsed file. ``table`` holds what ``tomllib`` makes of it."""

    table: dict[str, Any]
    lines: Mapping[Path, int]

    def line(self, path: Path) -> int:
        """Return the line of ``path``, or that of its nearest parent; 0 for the whole file."""
        while path:
            if path in self.lines:
                return self.lines[path]
            path = path[:-1]
        return 0


def dotted(path: Path) -> str:
    """Return a path as people write it: ``reference[1].value``. Indices count from 0."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            shown = part if _BARE_KEY.fullmatch(part) else f'"{part}"'
            text += f".{shown}" if text else shown
    return text


def parse(data: bytes | str) -> Source:
    """Return the tables of ``data``, UTF-8, with the line of each key.

    :raises TomlError: when it is too large, too deep, not UTF-8 or not TOML.
    """
    if len(data) > MAX_TOML_BYTES:
        raise TomlError(f"has {len(data)} bytes; at most {MAX_TOML_BYTES} are read")
    text = _decode(data) if isinstance(data, bytes) else data
    text = text.replace("\r\n", "\n")
    if "\0" in text:
        raise TomlError("is a binary file, not TOML", line=text[: text.index("\0")].count("\n") + 1)
    try:
        # The scanner runs first, because it bounds the depth. On a source that is not TOML it
        # stops early, at or before the place where the parser stops.
        lines = _Scanner(text).scan()
        return Source(table=tomllib.loads(text), lines=MappingProxyType(lines))
    except tomllib.TOMLDecodeError as error:
        message, line = str(error), text.count("\n") + 1
        if found := _ERROR_LINE.search(message):
            line = int(found[1]) if found[1] else line
            message = message[: found.start()]
        raise TomlError(f"is not TOML: {_lower(message)}", line=line) from None
    except TomlError:
        raise
    except ValueError:
        # Python bounds the digits of an integer that it converts from decimal.
        raise TomlError("has a number that is too long to be one") from None
    except RecursionError:
        raise TomlError("nests too deeply") from None


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise TomlError("is not UTF-8 text", line=line) from None


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


class _Stop(Exception):
    """The source is not TOML from here on; the parser reports the error."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._counted = 0
        self._lines: dict[Path, int] = {}
        self._arrays: dict[Path, int] = {}

    def scan(self) -> dict[Path, int]:
        with contextlib.suppress(_Stop):
            self._document()
        return self._lines

    def _document(self) -> None:
        base: Path = ()
        while self._skip(_BLANK) < len(self._text):
            if self._text.startswith("[", self._at):
                base = self._header()
            else:
                self._pair(base)

    def _header(self) -> Path:
        array = self._text.startswith("[[", self._at)
        line = self._here()
        self._at += 2 if array else 1
        key = self._key()
        self._expect("]]" if array else "]")
        path: Path = ()
        for part in key[:-1]:
            path += (part,)
            self._lines.setdefault(path, line)
            if path in self._arrays:
                path += (self._arrays[path],)
        path += (key[-1],)
        if array:
            self._lines.setdefault(path, line)
            self._arrays[path] = self._arrays.get(path, -1) + 1
            path += (self._arrays[path],)
        self._lines[path] = line
        self._bound(path, line)
        return path

    def _pair(self, base: Path) -> None:
        line = self._here()
        path = base
        for part in self._key():
            path += (part,)
            self._lines.setdefault(path, line)
        self._bound(path, line)
        self._expect("=")
        self._skip(_SPACE)
        self._value(path)

    def _key(self) -> list[str]:
        parts: list[str] = []
        while True:
            self._skip(_SPACE)
            parts.append(self._key_part())
            if len(parts) > _MAX_DEPTH:
                raise TomlError(f"nests deeper than {_MAX_DEPTH}", line=self._here())
            self._skip(_SPACE)
            if not self._text.startswith(".", self._at):
                return parts
            self._at += 1

    def _key_part(self) -> str:
        for pattern in (_BARE_KEY, _BASIC, _LITERAL):
            if found := pattern.match(self._text, self._at):
                self._at = found.end()
                if pattern is _BARE_KEY:
                    return found[0]
                try:
                    return str(tomllib.loads(f"k = {found[0]}")["k"])
                except ValueError:
                    raise _Stop from None
        raise _Stop

    def _value(self, path: Path) -> None:
        text, at = self._text, self._at
        if text.startswith("[", at):
            self._list(path)
        elif text.startswith("{", at):
            self._inline_table(path)
        else:
            pattern = _SCALAR
            for quote, quoted in (
                ('"""', _LONG_BASIC),
                ("'''", _LONG_LITERAL),
                ('"', _BASIC),
                ("'", _LITERAL),
            ):
                if text.startswith(quote, at):
                    pattern = quoted
                    break
            found = pattern.match(text, at)
            if found is None:
                raise _Stop
            self._at = found.end()

    def _list(self, path: Path) -> None:
        self._at += 1
        index = 0
        while True:
            self._skip(_BLANK)
            if self._text.startswith("]", self._at):
                self._at += 1
                return
            element = (*path, index)
            line = self._here()
            self._bound(element, line)
            self._lines[element] = line
            self._value(element)
            self._skip(_BLANK)
            if self._text.startswith(",", self._at):
                self._at += 1
            elif not self._text.startswith("]", self._at):
                raise _Stop
            index += 1

    def _inline_table(self, path: Path) -> None:
        self._at += 1
        while True:
            self._skip(_BLANK)
            if self._text.startswith("}", self._at):
                self._at += 1
                return
            self._pair(path)
            self._skip(_BLANK)
            if self._text.startswith(",", self._at):
                self._at += 1
            elif not self._text.startswith("}", self._at):
                raise _Stop

    def _bound(self, path: Path, line: int) -> None:
        if len(path) > _MAX_DEPTH:
            raise TomlError(f"nests deeper than {_MAX_DEPTH}", line=line)
        if len(self._lines) > _MAX_LINES:
            raise TomlError(f"has more than {_MAX_LINES} keys", line=line)

    def _skip(self, pattern: re.Pattern[str]) -> int:
        if found := pattern.match(self._text, self._at):
            self._at = found.end()
        return self._at

    def _expect(self, token: str) -> None:
        self._skip(_SPACE)
        if not self._text.startswith(token, self._at):
            raise _Stop
        self._at += len(token)

    def _here(self) -> int:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line
