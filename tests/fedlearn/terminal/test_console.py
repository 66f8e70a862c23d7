"""The command line itself: fast, lazy, and short when something is wrong."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from attestation.errors import EvidenceError
from fedlearn.cli import NOUNS, main
from fedlearn.errors import AdmissionDenied, ConfigError, KeyReleaseDenied
from fedlearn.terminal import console
from fedlearn.terminal.console import Commands, Noun, describe, printable
from fedlearn.terminal.plaintext import json_text

FEDLEARN = [sys.executable, "-c", "from fedlearn.cli import main; main()"]


def _run(*arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FEDLEARN, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **env},
        timeout=60,
        check=False,
    )


def test_help_is_fast_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom fedlearn.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'flwr', 'torch', 'grpc', 'numpy', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # The quickest of three: another process on the machine makes one slower, none faster.
    assert min(spent) < 0.2
    for noun in NOUNS:
        assert re.search(rf"^  {noun} ", done.stdout, re.MULTILINE)


def test_version_and_help_of_a_noun() -> None:
    assert re.fullmatch(r"fedlearn \S+\n", _run("--version").stdout)
    done = _run("job", "-h")
    assert done.returncode == 0
    assert "validate" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["jib"], "no command 'jib'; did you mean 'job'?"),
        (["xyzzy"], "no command 'xyzzy'; there are demo, simulate, job"),
        (["job", "valdate"], "no command 'valdate'; did you mean 'validate'?"),
        (["job", "validate", "--jsn"], "no such option '--jsn'"),
        (["job", "validate", "a", "b"], "got unexpected extra argument"),
        (["job", "cancel"], "missing argument 'NAME'"),
        (["job", "cancel", "../x"], "is not a name of a job"),
        (["job", "validate", "/nonexistent/job.toml"], "does not exist"),
        (["job", "status", "--operator", "/nonexistent"], "no operator login here"),
    ],
)
def test_a_wrong_command_line_is_two_lines(arguments: list[str], words: str) -> None:
    done = _run(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) <= 2
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert all(line.startswith("hint: ") for line in lines[1:])
    assert "Traceback" not in done.stderr


def test_an_error_for_programs_is_one_object() -> None:
    done = _run("job", "validate", "/nonexistent/job.toml", "--json")
    assert done.returncode == 1
    assert done.stderr == ""
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "config"
    assert "does not exist" in error["message"]
    assert set(error) == {"code", "message", "hint"}


def _group(error: BaseException) -> Commands:
    @click.group("fedlearn", cls=Commands)
    def group() -> None:
        """A group."""

    @group.command("go")
    @click.option("--json", "as_json", is_flag=True)
    def go(as_json: bool) -> None:
        """Fail."""
        raise error

    return group


FINDING: dict[str, object] = {
    "claim": "app",
    "tier": "contraindicated",
    "expected": "aa",
    "actual": "bb",
    "remedy": "rebuild",
}


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ConfigError("is wrong", where="a.toml:3", key="k", hint="mend it"), 1, "a.toml:3: k: is"),
        (AdmissionDenied("not liked", findings=(FINDING,)), 2, "app: expected aa, found bb (reb"),
        (KeyReleaseDenied("not for you"), 2, "error: not for you"),
        (EvidenceError("cut", field="quote", offset=3), 1, "quote at offset 3: cut"),
        (FileNotFoundError(2, "No such file or directory", "/x"), 1, "/x: no such file"),
        (OSError(28, "No space left on device", "/x"), 1, "hint: free some space"),
        (click.BadParameter("is bad"), 1, "invalid value: is bad"),
        (KeyError("k"), 1, "error: KeyError: 'k'\nhint: this is a bug of fedlearn"),
        (MemoryError(), 1, "out of memory"),
        (KeyboardInterrupt(), 130, "stopped"),
        (BrokenPipeError(), 1, ""),
        (ConfigError("\x1b[2Jgone"), 1, "error: �[2Jgone"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_error_is_short_and_has_its_status(
    error: BaseException, status: int, words: str
) -> None:
    result = CliRunner().invoke(_group(error), ["go"])
    assert result.exit_code == status
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert "\x1b" not in result.stderr


def test_findings_are_there_for_programs_too() -> None:
    error = AdmissionDenied("not liked", findings=(FINDING,))
    result = CliRunner().invoke(_group(error), ["go", "--json"])
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["findings"] == [FINDING]
    assert describe(error).code == "admission-denied"


def test_a_trace_is_shown_to_who_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLEARN_TRACE", "1")
    result = CliRunner().invoke(_group(KeyError("k")), ["go"])
    assert "Traceback" in result.stderr
    assert result.exit_code == 1


def test_a_module_that_is_missing_is_named() -> None:
    nouns = {"x": Noun(module="fedlearn.cli.gone", attribute="group", summary="X.")}
    group: Any = Commands("root", nouns=nouns)
    result = CliRunner().invoke(group, ["x"])
    assert result.exit_code == 1
    assert "fedlearn.cli.gone" in result.stderr
    assert "reinstall" in result.stderr


def test_ctrl_c_ends_without_a_word_too_many() -> None:
    code = (
        "import time, click\nfrom fedlearn.terminal.console import Commands\n"
        "@click.group(cls=Commands)\ndef main(): pass\n"
        "@main.command()\ndef wait():\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "main(['wait'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors.strip() == "stopped"


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = (
        "import click\nfrom fedlearn.terminal.console import Commands, line\n"
        "@click.group(cls=Commands)\ndef main(): pass\n"
        "@main.command()\ndef talk():\n    for _ in range(100000): line('x' * 100)\n"
        "main(['talk'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait(timeout=20)


def test_colours_only_on_a_terminal_and_never_against_no_color() -> None:
    code = "from fedlearn.terminal.console import line; line('hello', style='green')"
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert plain.stdout == "hello\n"
    assert "\x1b[32m" in _on_a_terminal(code, {"TERM": "xterm"})
    assert "\x1b" not in _on_a_terminal(code, {"TERM": "xterm", "NO_COLOR": "1"})


def _on_a_terminal(code: str, env: dict[str, str]) -> str:
    clean = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    master, slave = os.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=slave, env={**clean, **env})
    os.close(slave)
    process.wait(timeout=20)
    time.sleep(0.05)
    text = os.read(master, 4096).decode()
    os.close(master)
    return text


def test_words_of_others_do_not_steer_the_terminal() -> None:
    assert printable("a\x1b]0;x\x07b\r\nc\u202e") == "a�]0;x�b��c�"
    assert printable("Grüße, 東京") == "Grüße, 東京"


def test_the_group_can_be_used_from_code() -> None:
    assert main.main(["--version"], standalone_mode=False) in (None, 0)


# --- words of others, and programs that read ------------------------------------------

HOSTILE = "a\x1b[31m\x7f\x85\x9b2J\u202egnp.exe\u2066\u2028b\nc\x00"


def test_nothing_that_steers_a_terminal_is_printed() -> None:
    group = _group(ConfigError(HOSTILE, hint=HOSTILE))
    done = CliRunner().invoke(group, ["go"])
    assert done.exit_code == 1
    assert all(c.isprintable() or c == "\n" for c in done.output)

    @group.command("greet")
    def greet() -> None:
        console.line(HOSTILE, style="red")

    done = CliRunner().invoke(group, ["greet"])
    assert all(c.isprintable() or c == "\n" for c in done.output)


def test_json_is_printable_ascii_and_comes_back_as_it_was() -> None:
    for value in (HOSTILE, {HOSTILE: [HOSTILE, "ä", "日本"]}):
        text = json_text(value)
        assert text.isascii()
        assert text.isprintable()
        assert json.loads(text) == value


def test_json_has_no_numbers_that_are_not_finite() -> None:
    found = json_text({"a": math.nan, "b": [math.inf, (-math.inf, 1.5)], "c": {"d": math.nan}})
    assert json.loads(found, parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, [None, 1.5]],
        "c": {"d": None},
    }


def test_with_json_what_people_read_goes_to_stderr() -> None:
    group = _group(ConfigError("wrong"))

    @group.command("tell")
    @click.option("--json", "as_json", is_flag=True)
    def tell(as_json: bool) -> None:
        console.line("insecure: a warning first")
        if as_json:
            console.print_json({"done": True})

    done = CliRunner().invoke(group, ["tell", "--json"])
    assert done.stdout == '{"done": true, "schema": "fedlearn tell/1"}\n'
    assert done.stderr == "insecure: a warning first\n"
    done = CliRunner().invoke(group, ["tell"])
    assert (done.stdout, done.stderr) == ("insecure: a warning first\n", "")


def test_a_message_in_a_log_is_one_line() -> None:
    code = (
        "import logging\nfrom fedlearn.terminal.logs import configure_logging\n"
        "configure_logging('info')\n"
        f"logging.getLogger('x').info('%s', {HOSTILE!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.endswith("\n")
    assert done.stderr[:-1].isprintable()
    assert "INFO x: a" in done.stderr


PRINTS_TO_STDOUT = {
    # Commands without --json, whose output is a file.
    ("fedlearn/cli/appraisal/reference.py", "_print"),
    ("fedlearn/cli/appraisal/policy.py", "init"),
    # After the answer for --json has returned: a token that is saved as it is.
    ("fedlearn/cli/site.py", "token"),
    # Rows as CSV, which exclude --json.
    ("fedlearn/cli/job/results.py", "_write"),
    # A program that the demo talks to.
    ("fedlearn/cli/demo/rogue.py", "_main"),
    ("fedlearn/cli/demo/rogue.py", "wait"),
    # The show for people; with --json there is another one.
    ("fedlearn/terminal/progress.py", "show"),
}


def _prints(path: Path) -> Iterator[tuple[str, str]]:
    root = Path(__file__).parents[3]
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            to_stderr = any(item.arg == "err" for item in node.keywords)
            if name in {"print", "click.echo", "click.secho", "sys.stdout.write"} and not to_stderr:
                yield path.relative_to(root).as_posix(), function.name


def test_commands_print_by_line_and_print_json_alone() -> None:
    """So that with --json nothing but JSON can come to stdout."""
    root = Path(__file__).parents[3]
    folders = ("fedlearn/api", "fedlearn/cli", "fedlearn/local")
    files = [path for folder in folders for path in (root / folder).rglob("*.py")]
    files += [
        root / "fedlearn/terminal/progress.py",
        root / "server/main.py",
        root / "edge/main.py",
    ]
    assert {found for path in files for found in _prints(path)} == PRINTS_TO_STDOUT
