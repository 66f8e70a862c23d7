"""The output of an app in bounded memory: what is kept of a round, and what is counted."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from edge.client.app_output import MAX_ROUND_BYTES, BoundedOutput
from edge.client.log_records import MAX_RAW_BYTES, RecordHandler, line_text, parse_line
from fedlearn.sealing.app_log import (
    LEVELS,
    MAX_LINE_BYTES,
    MAX_LINES,
    AppLogLine,
    AppLogName,
    OpenedAppLog,
    open_app_log,
    seal_app_log,
)

FOLDER = Path(__file__).parents[1]


def texts(log: OpenedAppLog) -> list[str]:
    return [line.text for line in log.lines]


def of(*pieces: bytes) -> OpenedAppLog:
    output = BoundedOutput()
    for piece in pieces:
        output.feed(piece)
    return output.finish()


def test_lines_come_as_they_were_written_however_they_were_cut() -> None:
    assert texts(of(b"one\ntwo\r\n\nfour")) == ["one", "two", "", "four"]
    assert texts(of(b"on", b"e\nt", b"wo\n")) == ["one", "two"]
    assert of().lines == ()


def test_binary_and_control_characters_stay_data() -> None:
    log = of(b"\xff\x00\x1b[2Jok\n", "é\u202e".encode() + b"\n")
    assert texts(log) == ["\\xff\x00\x1b[2Jok", "é\u202e"]
    assert {line.level for line in log.lines} == {"output"}


def test_a_long_line_is_cut_with_a_note() -> None:
    size = 10 * MAX_RAW_BYTES
    (text,) = texts(of(b"x" * size + b"\n"))
    kept = len(text.split(" [")[0])
    assert text.endswith(f" [{size - kept} bytes were left out]")
    assert len(text.encode()) <= MAX_LINE_BYTES
    # It stays a text where the cut is inside of a character.
    (text,) = texts(of(("é" * size).encode()))
    assert text.startswith("ééé")
    assert "bytes were left out" in text


def test_the_first_and_the_last_lines_of_a_flood_are_kept() -> None:
    count = 100_000
    log = of(*(f"line {number}\n".encode() for number in range(count)))
    found = texts(log)
    assert found[:3] == ["line 0", "line 1", "line 2"]
    assert found[-1] == f"line {count - 1}"
    assert len(found) <= MAX_LINES
    assert log.left_out == count - (len(found) - 1)
    (note,) = [line for line in log.lines if line.level == "warning"]
    assert note.text == f"{log.left_out} lines were left out here: they exceed the bound of a round"


def test_a_flood_costs_no_memory() -> None:
    output = BoundedOutput()
    piece = os.urandom(64 * 1024).replace(b"\n", b"-") + b"\n"
    tracemalloc.start()
    for _ in range(2000):  # 128 MiB
        output.feed(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * MAX_ROUND_BYTES
    assert sum(len(text.encode()) for text in texts(output.finish())) < 2 * MAX_ROUND_BYTES


def test_a_flood_without_a_line_end_is_one_line() -> None:
    log = of(*[b"y" * 65536] * 100)
    assert len(log.lines) == 1
    assert log.lines[0].text.endswith("bytes were left out]")


def test_notes_of_the_client_are_kept_after_a_flood() -> None:
    output = BoundedOutput()
    output.feed(b"z\n" * 1_000_000)
    for number in range(50):
        output.note(f"note {number} " + "n" * 10_000)
    log = output.finish()
    assert log.lines[-1].logger == "fedlearn"
    assert log.lines[-1].level == "error"
    assert len(log.lines) <= MAX_LINES


@pytest.mark.parametrize("unit", [b"\0", b"\xff", b'"', b"\xc3\xa9"])
def test_the_largest_log_of_a_round_can_be_sealed(unit: bytes) -> None:
    output = BoundedOutput()
    output.feed((unit * (130 // len(unit)) + b"\n") * 10_000)
    for _ in range(20):
        output.note("\udc80\0" * 5000)
    key = X25519PrivateKey.generate()
    name = AppLogName(
        job="j", digest=bytes(32), site="s", client="c", stream=bytes(16), round=1, sequence=0
    )
    log = output.finish()
    sealed = seal_app_log(log, name, key.public_key().public_bytes_raw())
    assert open_app_log(sealed, name, key) == log


@given(st.lists(st.binary(max_size=3000), max_size=30))
def test_whatever_is_written_is_a_log(pieces: list[bytes]) -> None:
    log = of(*pieces)
    assert len(log.lines) <= MAX_LINES
    whole = b"".join(pieces)
    assert len(log.lines) + log.left_out >= whole.count(b"\n")


# --- records ----------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Path]:
    """What a handler, which is installed while the test runs, writes."""
    before = logging.root.handlers[:], logging.root.level, logging.getLogger("flwr").handlers[:]
    with warnings.catch_warnings(), (tmp_path / "stderr").open("wb") as target:
        warnings.simplefilter("default")
        RecordHandler(FOLDER, target.fileno()).install()
        yield tmp_path / "stderr"
    logging.root.handlers[:], level, logging.getLogger("flwr").handlers[:] = before
    logging.root.setLevel(level)
    threading.excepthook = threading.__excepthook__


def test_records_have_their_level_and_their_place(written: Path) -> None:
    logging.getLogger("mine").warning("loss\n%s", 0.5)
    logging.getLogger("mine").debug("not shown")
    warnings.warn("careful", stacklevel=1)
    try:
        json.loads("{")
    except ValueError:
        logging.getLogger("mine").exception("could not read")
    found = [parse_line(raw) for raw in written.read_bytes().splitlines()]
    assert [(line.level, line.text, line.logger) for line in found[:2]] == [
        ("warning", "loss", "mine"),
        ("warning", "0.5", "mine"),
    ]
    assert {line.file for line in found} == {"client/test_app_output.py"}
    assert all(line.line > 0 for line in found)
    assert found[2].text == "UserWarning: careful"
    assert found[-1].text.startswith("json.decoder.JSONDecodeError: ")
    assert found[-1].level == "error"
    assert line_text(found[0]) == f"WARNING mine: loss (client/test_app_output.py:{found[0].line})"
    # No path of this machine.
    assert str(FOLDER) not in written.read_text()
    assert sys.prefix not in written.read_text()


def test_a_record_is_one_write_that_is_not_mixed_with_others(written: Path) -> None:
    logging.getLogger("mine").error("\x00" * 100_000)
    logging.getLogger("mine").error("\ud800")
    data = written.read_bytes()
    assert max(map(len, data.splitlines())) < 4096
    assert parse_line(data.splitlines()[0]).text.endswith("[cut]")


@pytest.mark.parametrize(
    "raw",
    [
        b"\x1e",
        b"\x1e[]",
        b"\x1e{}",
        b'\x1e["loud", "text", "", "", 0]',
        b'\x1e["info", 5, "", "", 0]',
        b'\x1e["info", "text", "", "", -1]',
        b'\x1e["info", "text", "", "", "1"]',
        b'\x1e["info", "text", null, "", 1]',
        b'\x1e["info", "text", "", "", 1e999]',
        b'\x1e["info", "text", "", "", true]',
        b'\x1e["info", "text", "", "", 1.0]',
        b'\x1e["info", "text", 1, "", 1]',
        b'\x1e["info", "text", "\\ud800", "", 1]',
        b'\x1e[["info"], "text", "", "", 1]',
        b"\x1e" + b"[" * 5000,
        b'\x1e["info", "' + b"x" * 5000,
    ],
)
def test_a_record_that_an_app_forged_badly_is_text(raw: bytes) -> None:
    line = parse_line(raw)
    assert line.level == "output"
    assert line.text.startswith("\x1e")


@given(st.binary(max_size=200))
def test_any_line_is_one_of_the_known_levels(raw: bytes) -> None:
    for each in (raw, b"\x1e" + raw):
        line = parse_line(each)
        assert isinstance(line, AppLogLine)
        assert line.level in LEVELS


def test_a_record_with_text_that_is_no_unicode_is_kept() -> None:
    line = parse_line(b'\x1e["info", "\\ud800x", "a", "b", 3]')
    assert (line.level, line.text, line.line) == ("info", "\\ud800x", 3)
