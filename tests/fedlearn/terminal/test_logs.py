"""Logs of programs that run for long: one line an event, in text or as JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from fedlearn.terminal.logs import log_options

HOSTILE = "a\n2026-01-01T00:00:00.000Z INFO forged: line\x1b[31m\u202ered"
CODE = """
import logging
from fedlearn.terminal.logs import configure_logging, log_event
configure_logging({level!r}, form={form!r})
log = logging.getLogger("x")
log_event(log, "job.submitted", {text!r}, job="heart", rounds=3)
log_event(log, "update", "not shown at info", level=logging.DEBUG)
log.warning("plain %s", "words")
try:
    raise ValueError("broken")
except ValueError:
    log.exception("it failed")
"""


def logged(form: str, text: str = HOSTILE, level: str = "info") -> list[str]:
    code = CODE.format(level=level, form=form, text=text)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_a_line_has_a_time_a_level_and_an_event() -> None:
    lines = logged("text")
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert re.fullmatch(rf"{stamp} INFO job\.submitted: a.*", lines[0])
    assert re.fullmatch(rf"{stamp} WARNING x: plain words", lines[1])
    assert re.fullmatch(rf"{stamp} ERROR x: it failed", lines[2])
    # Only a traceback has more lines; text of others begins none.
    assert lines[3] == "Traceback (most recent call last):"
    assert "forged: line" in lines[0]
    assert all(line.isprintable() for line in lines)


def test_json_lines_have_the_same_events_with_their_fields() -> None:
    first, second, third = map(json.loads, logged("json"))
    assert (first["event"], first["level"]) == ("job.submitted", "INFO")
    assert first["fields"] == {"job": "heart", "rounds": 3}
    assert first["message"] == HOSTILE
    assert first["schema"] == second["schema"] == "fedlearn log/1"
    assert second["message"] == "plain words"
    assert "event" not in second
    assert "ValueError: broken" in third["traceback"]


def test_a_level_shows_what_it_names() -> None:
    assert any("not shown at info" in line for line in logged("text", level="debug"))
    assert not any("job.submitted" in line for line in logged("text", level="error"))


@click.command()
@log_options
def program(level: str, form: str) -> None:
    click.echo(f"{level} {form}")


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ((), {}, "info text"),
        (("--log-level", "debug", "--log-format", "json"), {}, "debug json"),
        ((), {"FEDLEARN_LOG": "WARNING", "FEDLEARN_LOG_FORMAT": "json"}, "warning json"),
        (("--log-level", "error"), {"FEDLEARN_LOG": "DEBUG"}, "error text"),
    ],
)
def test_options_come_from_the_command_line_or_the_environment(
    arguments: tuple[str, ...], environment: dict[str, str], expected: str
) -> None:
    unset = dict.fromkeys(("FEDLEARN_LOG", "FEDLEARN_LOG_FORMAT"))
    done = CliRunner().invoke(program, arguments, env={**unset, **environment})
    assert done.stdout.strip() == expected


@pytest.mark.parametrize("flag", ["--log-level", "--log-format"])
def test_another_level_or_format_is_refused(flag: str) -> None:
    done = CliRunner().invoke(program, [flag, "loud"], env={"FEDLEARN_LOG": None})
    assert done.exit_code == 2
    assert "'loud' is not one of" in done.stderr
