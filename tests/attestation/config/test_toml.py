"""TOML with line numbers: the scanner agrees with the parser, and bounds it."""

from __future__ import annotations

import time
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.config.toml import MAX_TOML_BYTES, TomlError, dotted, parse

SOURCE = '''# comment [not.a.table]
name = "x" # = "y"
a.b."c d" = 3
long = """
[not]
a = 1 \\""" """
raw = \'\'\'
 b = 2\'\'\'
[data.site-a]
path = { x = 1, y = [1,
  2, {z = 3}] }
[[ref]]
claim = 1
[[ref]]
claim = "]"
[ref.sub]
q = 1979-05-27T07:32:00Z
[[ref.deep]]
w = 'a\\'
[[ref.deep]]
"quoted.key" = +1_000
[ data . "site-b" ]
v = true'''


def test_every_key_has_its_line() -> None:
    source = parse(SOURCE)
    assert source.table == tomllib.loads(SOURCE)
    expected = {
        "name": 2,
        'a.b."c d"': 3,
        "long": 4,
        "raw": 7,
        "data.site-a": 9,
        "data.site-a.path.x": 10,
        "data.site-a.path.y[0]": 10,
        "data.site-a.path.y[1]": 11,
        "data.site-a.path.y[2].z": 11,
        "ref[0].claim": 13,
        "ref[1].claim": 15,
        "ref[1].sub.q": 17,
        "ref[1].deep[0].w": 19,
        'ref[1].deep[1]."quoted.key"': 21,
        "data.site-b.v": 23,
    }
    lines = {dotted(path): line for path, line in source.lines.items()}
    assert {key: lines.get(key) for key in expected} == expected


def test_the_line_of_what_is_not_there_is_that_of_its_parent() -> None:
    source = parse("[a]\n\n[a.b]\nx = 1\n")
    assert source.line(("a", "b", "y")) == 3
    assert source.line(("a", "z", "y")) == 1
    assert source.line(("z",)) == 0


@pytest.mark.parametrize(
    ("source", "line", "words"),
    [
        ("a = 1\na = 2\n", 2, "cannot overwrite"),
        ("a = 1\nb = \n", 2, "invalid value"),
        ("x = '", 1, "expected"),
        ("a = [\n1,\n2\nb", 4, "unclosed array"),
        ("a = 1\n\x00", 2, "binary"),
        (b"a = 1\n\xff\xfe", 2, "UTF-8"),
        ("[a]\n[a]\n", 2, "twice"),
        ("a = " + "9" * 5000, 0, "too long"),
        ("a" + ".a" * 100_000 + " = 1", 1, "deeper"),
        ("a = " + "[" * 100_000, 1, "deeper"),
        ("a = " + "{a = " * 100_000, 1, "deeper"),
        ("x" * (MAX_TOML_BYTES + 1), 0, "at most"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_not_toml_is_refused_with_its_line(
    source: str | bytes, line: int, words: str
) -> None:
    started = time.process_time()
    with pytest.raises(TomlError, match=words) as caught:
        parse(source)
    assert caught.value.line == line
    assert time.process_time() - started < 2


keys = st.sampled_from(["a", "b-1", '"q.k"', "'l'", "a.b", "c . d"])
scalars = st.sampled_from(
    ["1", "1.5", "true", '"x"', "'y'", '"""\nm\n"""', "'''\nn\n'''", "2020-01-01", '"#=["']
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda v: "[\n" + ",\n".join(v) + "]")
        | st.lists(inner, max_size=3).map(
            lambda v: "{" + ", ".join(f"k{i} = {x}" for i, x in enumerate(v)) + "}"
        )
    ),
    max_leaves=6,
)
statements = st.one_of(
    st.tuples(keys, values).map(lambda kv: f"{kv[0]} = {kv[1]} # c"),
    keys.map(lambda key: f"[{key}]"),
    keys.map(lambda key: f"[[{key}]]"),
    st.just(""),
)


def _paths(value: object, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    found = {path} if path else set()
    if isinstance(value, dict):
        for key, inner in value.items():
            found |= _paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found |= _paths(inner, (*path, index))
    return found


@settings(max_examples=300, deadline=None)
@given(st.lists(statements, max_size=8).map("\n".join))
def test_the_scanner_finds_exactly_the_parsers_paths(text: str) -> None:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        with pytest.raises(TomlError):
            parse(text)
        return
    source = parse(text)
    assert source.table == table
    assert set(source.lines) == _paths(table)
    assert all(1 <= line <= text.count("\n") + 1 for line in source.lines.values())


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab.=[]{}\"'#\n ,1\\", max_size=40))
def test_any_text_parses_as_the_parser_states_or_is_refused(text: str) -> None:
    try:
        table = tomllib.loads(text)
    except ValueError:
        with pytest.raises(TomlError):
            parse(text)
    else:
        assert parse(text).table == table
