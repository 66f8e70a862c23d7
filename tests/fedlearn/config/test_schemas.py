# ruff: noqa: RUF009 (an option is a field specifier; each makes a new field)
"""Strict files: what is wrong is named by file, line and key; nothing is guessed."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.config import (
    InconsistentValues,
    choice,
    dumps,
    each,
    file_path,
    flag,
    hexadecimal,
    number,
    option,
    plain,
    seq,
    table,
    tables,
    text,
    whole,
)
from fedlearn import config
from fedlearn.config import NAME
from fedlearn.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    size: int = option(whole(1, 10), default=5)
    kind: str = option(choice("red", "green"), default="red")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    rounds: int = option(whole(1, 10_000))
    ratio: float = option(number(0, 1), default=0.5)
    on: bool = option(flag(), default=False)
    label: str = option(text(most=20), default="x")
    place: Path = option(file_path(), default=Path("here"))
    digest: bytes = option(hexadecimal(2), default=b"")
    at: str = option(config.address(), default="")
    names: tuple[str, ...] = option(seq(config.name(), most=3, unique=True), default=())
    inner: Inner = option(table(Inner), factory=Inner)
    more: tuple[Inner, ...] = option(tables(Inner), default=())
    sizes: Mapping[str, int] = option(each(whole(0, 9), key=NAME), factory=dict)

    def __post_init__(self) -> None:
        if self.ratio == 0 and self.on:
            raise InconsistentValues((("ratio",), "must be above 0 when `on` is true"))


def test_a_right_file_becomes_a_frozen_model(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        'rounds = 3\nplace = "data"\ndigest = "aB01"\nnames = ["a", "b-1"]\nat = "[::1]:80"\n'
        '[inner]\nsize = 2\n[[more]]\nkind = "green"\n[sizes]\nq = 1\n'
    )
    found = config.read_file(Outer, path)
    assert (found.rounds, found.ratio, found.inner.size) == (3, 0.5, 2)
    assert found.more == (Inner(kind="green"),)
    assert found.place == tmp_path / "data"
    assert found.digest == b"\xab\x01"
    assert dict(found.sizes) == {"q": 1}
    with pytest.raises(AttributeError):
        found.rounds = 4  # type: ignore[misc]


def test_paths_are_absolute_however_the_file_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.toml").write_text('rounds = 3\nplace = "data"\n')
    monkeypatch.chdir(tmp_path)
    assert config.read_file(Outer, Path("a.toml")).place == tmp_path / "data"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('\n\nrounds = "ten"', 'f:3: rounds: must be a whole number from 1 to 10000, not "ten"'),
        ("rounds = 0", "f:1: rounds: must be a whole number from 1 to 10000, not 0"),
        ("rounds = true", "f:1: rounds: must be a whole number from 1 to 10000, not true"),
        ("rounds = 1.0", "f:1: rounds: must be a whole number from 1 to 10000, not 1.0"),
        ("rounds = " + "9" * 99, "not a number of more than 60 digits"),
        ("ronds = 3", "f:1: ronds: unknown key; did you mean 'rounds'?"),
        ("rounds = 3\nzzz = 3", "f:2: zzz: unknown key; known here: at, digest"),
        ("ratio = 0.1", "f: needs the key 'rounds': a whole number from 1 to 10000"),
        ("rounds = 3\nratio = nan", "f:2: ratio: must be a number from 0 to 1, not nan"),
        ("rounds = 3\nratio = inf", "f:2: ratio: must be a number from 0 to 1, not inf"),
        ("rounds = 3\non = 1", "f:2: on: must be true or false, not 1"),
        ('rounds = 3\nlabel = ""', 'f:2: label: must be text of 1 to 20 characters, not ""'),
        ('rounds = 3\nlabel = "a\\u0000b"', "f:2: label: must be text of 1 to 20 characters"),
        ("rounds = 3\nplace = 3", "f:2: place: must be a path, not 3"),
        ('rounds = 3\ndigest = "xyz1"', "f:2: digest: must be 4 hexadecimal digits, not"),
        ('rounds = 3\nat = "host"', "f:2: at: must be an address"),
        ('rounds = 3\nat = "host:70000"', "f:2: at: must be an address"),
        ('rounds = 3\nnames = "a"', "f:2: names: must be a list of at most 3 items"),
        ('rounds = 3\nnames = ["A"]', "f:2: names[0]: must be 1 to 63 of a-z"),
        ('rounds = 3\nnames = [\n"a",\n"a"]', 'f:4: names[1]: "a" is listed twice'),
        ("rounds = 3\ninner = 1", "f:2: inner: must be a table, not 1"),
        ("rounds = 3\n[inner]\nsize = 11", "f:3: inner.size: must be a whole number from 1 to 10"),
        ('rounds = 3\n[inner]\nkind = "gren"', 'not "gren"; did you mean "green"?'),
        ("rounds = 3\n[[more]]\n[[more]]\nsize = 0", "f:4: more[1].size: must be a whole number"),
        ("rounds = 3\n[sizes]\n'Q q' = 1", "is not a valid name: it must match"),
        ("rounds = 3\nratio = 0\non = true", "f:2: ratio: must be above 0 when `on` is true"),
        ("rounds = 2020-01-01", "not 2020-01-01"),
        ("rounds == 3", "f:1: is not TOML: invalid value"),
    ],
)
def test_a_wrong_file_is_one_line_that_states_what_where_and_what_would_be_right(
    source: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config.read(Outer, source, where="f")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.where.startswith("f")


def test_all_faults_are_reported_in_the_order_of_the_file() -> None:
    with pytest.raises(config.ConfigErrors) as caught:
        config.read(Outer, 'zzz = 1\nratio = "x"\n[inner]\nsize = 0\n', where="f")
    starts = [str(problem).split(": ")[0] for problem in caught.value.problems]
    assert starts == ["f", "f:1", "f:2", "f:4"]
    assert str(caught.value).count("\n") == 3


def test_a_file_that_is_no_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text("")
    (tmp_path / "big").write_bytes(b"#" * (config.MAX_FILE_BYTES + 1))
    (tmp_path / "binary").write_bytes(b"\x7fELF\0\0")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name, words in {
            "jobb.toml": "does not exist",
            ".": "is a directory",
            "fifo": "is not a regular file",
            "socket": "cannot be read",
            "big": "larger than",
            "binary": "binary file",
            "job.toml/x": "cannot be read",
            "a\0b": "cannot be read",
        }.items():
            with pytest.raises(ConfigError, match=words):
                config.read_file(Outer, tmp_path / name)
    with pytest.raises(ConfigError) as caught:
        config.read_file(Outer, tmp_path / "jobb.toml")
    assert caught.value.hint == f"did you mean {tmp_path / 'job.toml'}?"
    with pytest.raises(ConfigError) as caught:
        config.read_file(Outer, tmp_path / "policy.toml", made_by="fedlearn policy init")
    assert caught.value.hint == "`fedlearn policy init` writes one", "job.toml is another file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    top: Mapping[str, object] = option(plain(dict, lambda _: True, "a table"))


scalars = st.one_of(
    st.text(), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(allow_nan=False)
).filter(lambda value: value not in (float("inf"), float("-inf")))
documents = st.recursive(
    st.dictionaries(st.text(), scalars | st.lists(scalars, max_size=3), max_size=4),
    lambda inner: st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=200, deadline=None)
@given(documents)
def test_what_is_written_reads_back_equal(document: dict[str, object]) -> None:
    found = config.read(Whole, dumps({"top": document}), where="f")
    assert found.top == document
