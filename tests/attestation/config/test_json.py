"""The JSON Schema of a field type refuses what the type refuses, and nothing that it takes."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from attestation.config import (
    FieldType,
    SchemaError,
    choice,
    describe,
    each,
    file_path,
    flag,
    hexadecimal,
    line,
    matching,
    number,
    octets,
    option,
    read,
    scalar,
    seq,
    text,
    timestamp,
    whole,
)
from edge.config.site import SiteConfig
from fedlearn.config import address, name
from server.config import ServerConfig

KINDS: dict[str, tuple[FieldType[Any], list[Any], list[Any]]] = {
    "text": (text(least=1, most=3), ["a", "é\nb"], ["", "abcd", 1]),
    "line": (line(most=3), ["", "a b"], ["abcd", "a\nb", None]),
    "matching": (matching(re.compile("a|bc"), "a or bc"), ["a", "bc"], ["abc", "ab", "", "xa"]),
    "whole": (whole(2, 9), [2, 9], [1, 10, 2.5, "2", True]),
    "flag": (flag(), [True, False], [0, "true"]),
    "number": (number(0.5, 2), [0.5, 1, 2.0], [0.4, 2.1, "1", True]),
    "choice": (choice("a", "b"), ["a"], ["c", "", 1, True]),
    "hexadecimal": (hexadecimal(1, 3), ["aB", "00ff11"], ["a", "aabb", "xx", ""]),
    "octets": (octets(1, 2), ["aa", "aabb"], ["", "a", "aab", "aabbcc", "zz"]),
    "timestamp": (timestamp(), ["2026-07-01T00:00:00Z"], [1, None]),
    "scalar": (scalar(), ["x", 1, 1.5, True], [None, []]),
    "path": (file_path(), ["/a", "b"], ["", 1]),
    "list": (seq(whole(0, 3), least=1, most=2, unique=True), [[1], [1, 2]], [[], [1, 1], [4], 1]),
    "list of any length": (seq(flag(), most=2), [[], [True, True]], [[True] * 3]),
    "table": (
        each(whole(0, 3), key=re.compile("[a-z]+"), most=2),
        [{}, {"a": 1, "b": 3}],
        [{"a": 4}, {"A": 1}, {"a": 1, "b": 1, "c": 1}, []],
    ),
    "table of some keys": (each(flag(), key=("a", "b")), [{"a": True}], [{"c": True}]),
    "name": (name(), ["a", "a-1"], ["-a", "A", "a" * 64]),
    "address": (address(), ["a.example:1", "[::1]:9443"], ["a", "a:b", ":1", "a b:1"]),
}


@pytest.mark.parametrize("which", KINDS)
def test_a_schema_agrees_with_the_type_that_reads(which: str) -> None:
    kind, accepted, refused = KINDS[which]
    model = dataclasses.make_dataclass("Model", [("x", Any, option(kind))], frozen=True)
    (item,) = describe(model)
    schema = Draft202012Validator(dict(item.json))
    for value in accepted:
        read(model, {"x": value}, where="test")
        assert schema.is_valid(value), value
    for value in refused:
        with pytest.raises(SchemaError):
            read(model, {"x": value}, where="test")
        assert not schema.is_valid(value), value


@pytest.mark.parametrize("model", [SiteConfig, ServerConfig])
def test_every_key_of_the_files_that_charts_write_has_a_schema(model: type) -> None:
    for item in describe(model):
        Draft202012Validator.check_schema(dict(item.json))
        assert item.json, item.key
        # Helm reads patterns by RE2, which has no lookaround and no backreference.
        assert not re.search(r"\(\?[=!<]|\\[1-9Z]", str(item.json)), item.key
