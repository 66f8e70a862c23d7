"""A federation on one machine stays, and continues after a part was killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fedlearn.cli import main
from fedlearn.errors import ConfigError, LaunchError
from fedlearn.identity.login import OperatorLogin
from fedlearn.local.daemons import Daemons
from fedlearn.local.resident import ResidentFederation, default_place, site_names
from server.config import ServerConfig


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home directory in which nothing is left running."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "FEDLEARN_OPERATOR"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    if (place := ResidentFederation(default_place())).made:
        place.down(purge=True)


def local(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["local", *map(str, arguments)], catch_exceptions=False)


def parts() -> dict[str, dict[str, object]]:
    found = json.loads(local("status", "--json").stdout)["parts"]
    return {part["name"]: part for part in found}


@pytest.mark.e2e
def test_it_stays_and_continues(home: Path) -> None:
    (home / "data" / "site-a").mkdir(parents=True)
    done = local("up", "--sites", "1", "--data", f"first={home / 'data'}")
    assert done.exit_code == 0, done.output
    assert "INSECURE" in done.output
    assert "no data set" not in done.output
    assert f"export FEDLEARN_OPERATOR={default_place()}/operator/login" in done.output
    table = (default_place() / "sites/site-a/site.toml").read_text()
    assert 'other_bundles = "insecure-accept"' in table
    assert "data/site-a" in table
    assert "is up already" in local("up").output
    assert "has the sites site-a" in local("up", "--sites", "2").output

    agent = parts()["site-a"]["pid"]
    assert isinstance(agent, int)
    running = Daemons(default_place()).find("site-a")
    assert running is not None
    os.kill(agent, signal.SIGKILL)
    while not running.ended:
        os.sched_yield()
    done = local("status")
    assert done.exit_code == 1
    assert "site-a       does not run; its log is" in done.output
    assert json.loads(local("up", "--json").stdout)["started"] == ["site-a"]
    (home / "more").mkdir()
    done = local("up", "--data", f"second={home / 'more'}", "--json")
    assert json.loads(done.stdout)["started"] == ["site-a"]
    assert "[data.second]" in (default_place() / "sites/site-a/site.toml").read_text()

    assert local("add-site", "north").exit_code == 0
    assert "there is a site north already" in local("add-site", "north").output
    assert all(part["connected"] for name, part in parts().items() if name != "coordinator")
    assert local("down").output == "ended: north, site-a, coordinator\n"
    assert "the coordinator does not run" in local("add-site", "south").output

    listen = ServerConfig.load(default_place() / "coordinator/server.toml").listen
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(listen.gate.rpartition(":")[2])))
        other.listen()
        refused = local("up")
        assert f"gate {listen.gate} is in use" in refused.output
    done = local("up", "--install-login")
    assert done.exit_code == 0, done.output
    installed = home / ".config/fedlearn/operator"
    assert OperatorLogin.load(installed).address == listen.control
    assert "deleted" in local("down", "--purge").output
    assert not default_place().exists()
    assert not installed.exists()


@pytest.mark.parametrize("command", [("status",), ("down",), ("add-site", "north")])
def test_without_a_federation_the_command_that_makes_one_is_named(
    home: Path, command: tuple[str, ...]
) -> None:
    done = local(*command)
    assert done.exit_code != 0
    assert "fedlearn local up --sites 3" in done.output
    assert not default_place().exists()


def test_other_folders_are_left_alone(home: Path) -> None:
    (home / "mine").mkdir()
    (home / "mine/thesis.tex").touch()
    done = local("up", "--folder", home / "mine")
    assert "has thesis.tex, and no federation" in done.output
    assert "has no federation" in local("down", "--purge", "--folder", home / "mine").output
    (home / "mine/local.json").write_text("{}")
    for command in (("up",), ("down", "--purge"), ("status",)):
        done = local(*command, "--folder", home / "mine")
        assert "is not a file that `fedlearn local up` wrote" in done.output
    assert (home / "mine/thesis.tex").exists()


def test_another_users_folder_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "theirs").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: (home / "theirs").stat().st_uid + 1)
    assert "is another user's" in local("up", "--folder", home / "theirs").output


def test_two_commands_at_once_are_refused(home: Path) -> None:
    federation = ResidentFederation(home / "f")
    with federation._locked(create=True):
        done = local("up", "--folder", home / "f")
    assert "another `fedlearn local` command works on it" in done.output


def test_what_was_made_by_half_is_refused_and_can_be_deleted(home: Path) -> None:
    place = home / "f"
    place.mkdir()
    record = {"version": 1, "sites": ["a"], "data": {}, "initialized": False}
    (place / "local.json").write_text(json.dumps(record))
    done = local("up", "--folder", place)
    assert "was made by half" in done.output
    assert "fedlearn local down --purge" in done.output
    assert local("down", "--purge", "--folder", place).exit_code == 0
    assert not place.exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--sites", "0"), "must be 1 to 26"),
        (("--sites", "27"), "must be 1 to 26"),
        (("--sites", "a,a"), "different names"),
        (("--sites", "coordinator"), "different names"),
        (("--sites", "A B"), "different names"),
        (("--data", "x"), "write NAME=PATH"),
        (("--data", "x=none"), "does not exist"),
        (("--data", "A B=."), "no name of a data set"),
    ],
)
def test_wrong_options_start_nothing(home: Path, flags: tuple[str, ...], words: str) -> None:
    done = local("up", *flags)
    assert done.exit_code != 0
    assert words in done.output
    assert not (default_place() / "local.json").exists()


def test_another_login_is_not_replaced(home: Path) -> None:
    (home / ".config/fedlearn/operator").mkdir(parents=True)
    done = local("up", "--install-login")
    assert "another login is installed there" in done.output
    assert not default_place().exists()


def test_the_number_of_a_process_that_ended_is_not_taken_for_it(tmp_path: Path) -> None:
    daemons = Daemons(tmp_path)
    sleeping = daemons.start("a", [sys.executable, "-c", "import time; time.sleep(60)"])
    assert daemons.start("a", ["false"]).pid == sleeping.pid, "it runs already"
    # Another process has this number now: the time of its start is not the recorded one.
    (tmp_path / "run/a.pid").write_text(f"{sleeping.pid} 1\n")
    assert not daemons.stop("a")
    sleeping.check()
    sleeping.stop()
    with pytest.raises(LaunchError, match="a has ended"):
        sleeping.check()


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1); time.sleep(60)"
    deaf = Daemons(tmp_path).start("a", [sys.executable, "-u", "-c", code])
    while not deaf.tail():
        os.sched_yield()
    deaf.stop(seconds=0.2)
    assert deaf.ended


def test_names_of_sites() -> None:
    assert site_names("26")[-1] == "site-z"
    with pytest.raises(ConfigError, match="neither a number"):
        site_names("")
