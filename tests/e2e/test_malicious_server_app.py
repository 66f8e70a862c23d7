"""A ServerApp that attacks: what README promises of it, tried from inside its process.

Each attack is the body of a ServerApp. It prints ``REACHED`` when it got what it must not get, and
``refused`` with the reason when it did not.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedlearn.privacy import PrivacySpec
from server.flower.job_plan import Outcome
from tests.harness.flower_federation import (
    PYPROJECT,
    Channel,
    FlowerFederation,
    ended,
    make_plan,
    write_app,
)

pytestmark = pytest.mark.e2e

SPEC = PrivacySpec(clip=0.5, noise_multiplier=1.0, epsilon=100.0, delta=1e-5)

SERVER_APP = """
import json, os, socket, sys, time
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()
FEW = dict(min_available_nodes=1, min_train_nodes=1, min_evaluate_nodes=1)
MODEL = ArrayRecord([np.zeros(64, "float32"), np.zeros((), "int64")])

def attempt(name, action):
    try:
        found = action()
    except BaseException as error:
        print("refused", name, type(error).__name__, str(error)[:200])
    else:
        print("REACHED", name, str(found)[:200])

def honest(grid, strategy=None, **more):
    return (strategy or FedAvg(**FEW)).start(grid=grid, initial_arrays=MODEL, num_rounds=1, **more)

@app.main()
def main(grid, context):
    config = context.run_config
    secret = config["secret"]
BODY
"""

PROJECT = PYPROJECT.replace("num-server-rounds = 3", 'num-server-rounds = 3\nsecret = ""')


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[FlowerFederation]:
    made = FlowerFederation(tmp_path)
    yield made
    made.close()


Attack = Callable[..., tuple[Outcome, Channel, list[str]]]


@pytest.fixture
def attack(federation: FlowerFederation, tmp_path: Path) -> Attack:
    """Run a ServerApp with this body; return outcome, channel, and the lines that it printed."""
    from server.flower.application.bundle import build

    def go(body: str, *, clients: bool = True, **plan: Any) -> tuple[Outcome, Channel, list[str]]:
        server = SERVER_APP.replace("BODY", textwrap.indent(textwrap.dedent(body), "    "))
        app = write_app(tmp_path / f"app-{plan['job']}", server=server, project=PROJECT)
        if plan.get("privacy") is not None:
            plan["noise_secret"] = b"s" * 32
        made = make_plan(build(app), sites=2, **{"rounds": 1, **plan})
        host, channel = federation.host(made)
        for site in made.spec.sites if clients else ():
            federation.client(made, site)
        host.start()
        outcome = ended(host, 90)
        host.close()
        assert outcome is not None
        return outcome, channel, [fields["line"] for fields in channel.of("log")]

    return go


def refused(lines: list[str]) -> dict[str, str]:
    """Return what was refused, by name; nothing may have been reached."""
    assert not [line for line in lines if line.startswith("REACHED")], lines
    found = [line.split(" ", 2) for line in lines if line.startswith("refused")]
    return {name: reason for _, name, reason in found}


def test_it_reaches_no_process_file_or_network_outside_of_its_own(
    attack: Attack, tmp_path: Path
) -> None:
    secret = tmp_path / "state" / "root.key"
    secret.parent.mkdir()
    secret.write_text("the root key")
    body = """
    from pathlib import Path
    attempt("file", lambda: open(secret).read())
    attempt("folder", lambda: os.listdir(os.path.dirname(secret)))
    attempt("shadow", lambda: open("/etc/shadow").read())
    attempt("outside", lambda: Path("/tmp/planted-by-a-job").write_text("x"))
    attempt("beside", lambda: Path(secret).with_name("planted").write_text("x"))
    attempt("inet", lambda: socket.create_connection(("127.0.0.1", 22), 2))
    attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
    attempt("unix", lambda: socket.socket(socket.AF_UNIX).connect("/var/run/docker.sock"))
    attempt("parent", lambda: open(f"/proc/{os.getppid()}/mem", "rb").read(1))
    attempt("kill", lambda: os.kill(os.getppid(), 0) if os.getppid() > 1 else 1 / 0)
    def others():
        found = [p for p in os.listdir("/proc") if p.isdecimal()]
        words = [open(f"/proc/{p}/cmdline", "rb").read() for p in found]
        assert not any(b"aggregator" in each or b"pytest" in each for each in words)
        raise PermissionError("sees its own processes only")
    attempt("others", others)
    attempt("owner", lambda: os.chown(".", 12345, 12345) or "a capability")
    print("mine", Path("own.txt").write_text("fine"))
    honest(grid)
    """
    outcome, _, lines = attack(body, job="reach", run_config={"secret": str(secret)})
    assert outcome.status == "finished", (outcome, lines)
    assert set(refused(lines)) >= {
        *("file", "folder", "shadow", "outside", "beside", "inet", "netlink", "unix"),
        *("parent", "others", "owner"),
    }
    assert any(line.startswith("mine") for line in lines)
    assert not Path("/tmp/planted-by-a-job").exists()


def test_nothing_of_it_outlives_its_job(attack: Attack, tmp_path: Path) -> None:
    body = """
    import subprocess
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(654321)"])
        os._exit(0)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(654321)"])
    honest(grid)
    """
    outcome, _, lines = attack(body, job="outlive")
    assert outcome.status == "finished", (outcome, lines)
    left = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                if b"time.sleep(654321)" in (path / "cmdline").read_bytes():
                    left.append(path.name)
            except OSError:
                continue
    assert left == []


PRIVATE = {
    "drives the grid": """
    def grid_driven():
        nodes = list(grid.get_node_ids())
        content = RecordDict({"arrays": MODEL, "config": ConfigRecord({})})
        return list(grid.send_and_receive([Message(content, n, "train") for n in nodes]))
    attempt("attack", grid_driven)
    """,
    "overrides start": """
    class Own(FedAvg):
        def start(self, grid, initial_arrays, **more):
            content = RecordDict({"arrays": initial_arrays, "config": ConfigRecord({})})
            nodes = list(grid.get_node_ids())
            return list(grid.send_and_receive([Message(content, n, "train") for n in nodes]))
    attempt("attack", lambda: Own(**FEW).start(grid, MODEL))
    """,
    "overrides the aggregation": """
    class Own(FedAvg):
        def aggregate_train(self, server_round, replies):
            print("REACHED", [r.content for r in replies])
            return MODEL, None
    attempt("attack", lambda: honest(grid, Own(**FEW)))
    """,
    "calls itself one of flower's": """
    class FedAvg2(FedAvg):
        def aggregate_train(self, server_round, replies):
            print("REACHED", list(replies))
            return MODEL, None
    import server.flower.application.app_grid as appgrid
    saved, appgrid.name_of = appgrid.name_of, lambda strategy: "fedmedian"
    attempt("attack", lambda: honest(grid, FedAvg2(**FEW)))
    appgrid.name_of = lambda strategy: "fedavg"
    print("named", float(np.abs(honest(grid, FedAvg2(**FEW)).arrays["0"].numpy()).max()) > 0)
    appgrid.name_of = saved
    """,
    "asks the aggregator": """
    nodes = list(grid.get_node_ids())
    message = {"node": nodes[0], "kind": "train", "group": "", "ttl": 60.0, "content": 0}
    fields = {"messages": [message], "contents": [[]]}
    attempt("attack", lambda: grid.peer.call("push", fields))
    attempt("pull", lambda: grid.peer.call("pull", {"ids": ["x"], "seconds": 1}))
    """,
}


@pytest.mark.parametrize("name", sorted(PRIVATE))
def test_under_privacy_it_gets_no_update_in_any_way(attack: Attack, name: str) -> None:
    body = PRIVATE[name] + "\n    honest(grid)\n"
    outcome, channel, lines = attack(textwrap.dedent(body), job="private", privacy=SPEC)
    assert "attack" in refused(lines), lines
    assert outcome.status == "finished", (outcome, lines)
    # What it did see, it paid for.
    assert len(channel.charged) == len(channel.checkpoints) == (2 if "named" in body else 1)


def test_every_release_of_every_stage_is_charged(attack: Attack) -> None:
    body = """
    for _ in range(3):
        honest(grid)
    """
    outcome, channel, lines = attack(body, job="stages", privacy=SPEC)
    assert outcome.status == "finished", (outcome, lines)
    assert [(stage, number) for stage, number, _ in channel.charged] == [(1, 1), (2, 1), (3, 1)]
    released = [each["0"].tobytes() for each in channel.models]
    assert len(set(released)) == 3


def test_what_it_sees_under_privacy_has_noise_and_was_sealed_first(attack: Attack) -> None:
    body = """
    seen = []
    def evaluate(round_, arrays):
        if round_:
            print("seen", float(np.abs(arrays["0"].numpy()).max()))
        return MetricRecord({"n": 1.0})
    result = honest(grid, evaluate_fn=evaluate)
    print("final", float(np.abs(result.arrays["0"].numpy()).max()))
    """
    outcome, channel, lines = attack(body, job="noise", privacy=SPEC)
    assert outcome.status == "finished", (outcome, lines)
    sealed = float(abs(channel.models[0]["0"]).max())
    # Two updates within 0.5 of zeros have a mean within 0.5; the noise is larger.
    for word in ("seen", "final"):
        (line,) = [each for each in lines if each.startswith(word)]
        assert float(line.split()[1]) == pytest.approx(sealed)
    first = next(i for i, (kind, f) in enumerate(channel.events) if "seen" in f.get("line", ""))
    assert channel.events[first][0] == "log"
    assert len(channel.checkpoints) == 1


def test_without_being_visible_updates_stay_with_the_aggregator(attack: Attack) -> None:
    body = """
    class Own(FedAvg):
        def aggregate_train(self, server_round, replies):
            print("REACHED", list(replies))
            return MODEL, None
    attempt("attack", lambda: honest(grid, Own(**FEW)))
    """
    outcome, _, lines = attack(body, job="aggregated")
    assert "visible-to-app" not in refused(lines)["attack"]  # the hint has it, not the message
    assert "sees single updates" in refused(lines)["attack"]
    # It asked for nothing else, so no round was run, and the job did not do what it is for.
    assert (outcome.status, outcome.rounds) == ("failed", 0)
    assert "sees single updates" in outcome.message
    assert "visible-to-app" in outcome.hint


def test_where_it_is_visible_its_own_aggregation_judges_the_replies(attack: Attack) -> None:
    body = """
    class Own(FedAvg):
        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            print("replies", len(replies), server_round)
            return super().aggregate_train(server_round, replies)
    honest(grid, Own(**FEW))
    """
    outcome, channel, lines = attack(body, job="visible", updates="visible-to-app")
    assert outcome.status == "finished", (outcome, lines)
    assert "replies 2 1" in lines
    assert len(channel.checkpoints) == 1


FORGED = {
    "event": {"kind": "update.received", "fields": {"round": 1, "site": "x", "digest": "00"}},
    "charge": {"stage": 1, "round": 1, "inputs": ""},
    "save": {"round": 7, "state": {}},
    "live": {},
    "start": {"strategy": {"name": "fedavg", "options": {}}, "arrays": ["safetensors"]},
}


def test_it_forges_nothing(attack: Attack) -> None:
    calls = "\n".join(
        f"attempt({name!r}, lambda: grid.peer.call({name!r}, {fields!r}))"
        for name, fields in FORGED.items()
    )
    body = f"""
    nan = float("nan")
{textwrap.indent(calls, "    ")}
    attempt("ids", lambda: grid.peer.call("forget", {{"ids": 7}}))
    attempt("nan", lambda: FedAvg(**FEW).start(grid=grid, initial_arrays=MODEL, timeout=nan))
    attempt("rounds", lambda: grid.peer.call("start", {{"rounds": -1}}))
    honest(grid)
    """
    outcome, channel, lines = attack(body, job="forge")
    assert set(refused(lines)) >= {*FORGED, "nan", "rounds", "ids"}, lines
    assert outcome.status == "finished", (outcome, lines)
    assert {kind for kind, _ in channel.events} <= {
        *("log", "job.started", "round.waiting", "round.started", "round.finished"),
        "update.received",
    }
    assert len(channel.checkpoints) == 1


def test_only_its_own_files_are_kept_with_the_job(attack: Attack, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the root key")
    body = """
    import pathlib
    pathlib.Path("plots").mkdir()
    pathlib.Path("plots/loss.txt").write_text("0.5")
    pathlib.Path("empty").touch()
    import tempfile
    tempfile.NamedTemporaryFile(delete=False).close()
    pathlib.Path("fedlearn.state").write_bytes(bytes(3))
    os.symlink(secret, "linked")
    os.symlink(os.path.dirname(secret), "folder")
    os.mkfifo("fifo")
    pathlib.Path(".hidden").write_text("x")
    for name, names in {
        "upwards": ["../out"], "absolute": ["/etc/passwd"], "nothing": [""], "twice": ["a", "a"],
        "below a file": ["a", "a/b"], "a number": [7], "no list": "a",
        "more names": ["a", "b", "c"],
    }.items():
        blobs = [b"x"] * (2 if len(names) > 1 else 1)
        attempt(name, lambda: grid.peer.call("files", {"names": names}, blobs))
    attempt("many", lambda: grid.peer.call("files", {"names": ["a"] * 1001}, [b""] * 1001))
    attempt("large", lambda: grid.peer.call("files", {"names": ["a"]}, [bytes((64 << 20) + 1)]))
    honest(grid)
    """
    config = {"secret": str(secret)}
    plan = {"run_config": config, "max_update_bytes": 64 << 20}
    outcome, channel, lines = attack(body, job="files", **plan)
    assert outcome.status == "finished", (outcome, lines)
    assert len(refused(lines)) == 10, lines
    assert channel.files == [{"empty": b"", "fedlearn.state": bytes(3), "plots/loss.txt": b"0.5"}]
    assert "a file of the application is not kept: fifo: not a regular file" in lines


def test_files_of_an_application_that_fails_are_kept_and_only_once(attack: Attack) -> None:
    body = """
    open("notes", "w").write("so far")
    grid.peer.call("files", {"names": ["first"]}, [b"1"])
    raise ValueError("no more")
    """
    outcome, channel, _ = attack(body, job="failed", clients=False)
    assert outcome.status == "failed"
    assert "no more" in outcome.message
    assert channel.files == [{"first": b"1"}]
    body = 'open("notes", "w").write("so far"); raise ValueError("no more")'
    outcome, channel, lines = attack(body, job="failed-2", clients=False)
    # With the place in the bundle, and no path of the coordinator.
    place = re.search(
        r"exception: (tiny/server_app\.py):(\d+): ValueError: no more", outcome.message
    )
    assert place is not None, outcome.message
    assert f'  File "{place[1]}", line {place[2]}, in main' in lines
    assert lines[-1] == "ValueError: no more"
    assert not any(sys.prefix in line for line in lines)
    assert channel.files == [{"notes": b"so far"}]


def test_a_malformed_end_ends_the_job_in_words(attack: Attack) -> None:
    body = """
    grid.peer.call("done", {"failure": {"code": 7, "message": ["x" * 1_000_000]}})
    time.sleep(60)
    """
    started = time.monotonic()
    outcome, _, _ = attack(body, job="malformed", clients=False)
    assert outcome.status == "failed"
    assert outcome.message == "no reason was given"
    assert time.monotonic() - started < 45


def test_an_exception_of_a_hundred_kilobytes_is_cut(attack: Attack) -> None:
    outcome, _, _ = attack('raise ValueError("x" * 100_000)', job="long", clients=False)
    assert outcome.status == "failed"
    assert 1_000 < len(outcome.message) <= 4_000


def test_memory_is_bounded_and_the_bound_is_named(attack: Attack) -> None:
    body = """
    held = []
    while True:
        held.append(np.ones(8_000_000))
    """
    outcome, _, _ = attack(body, job="memory", clients=False, app_memory_bytes=1024**3)
    assert outcome.status == "failed"
    assert "memory" in outcome.message.lower(), outcome


def test_what_it_prints_is_bounded(attack: Attack) -> None:
    body = """
    for number in range(200_000):
        print("line", number)
    honest(grid)
    """
    outcome, _, lines = attack(body, job="prints")
    assert outcome.status == "finished", outcome
    assert len(lines) < 10_000
    assert any("lines are not shown" in line for line in lines)


def test_a_killed_application_is_a_crash_that_is_named(
    attack: Attack, federation: FlowerFederation
) -> None:
    outcome, _, _ = attack(f"os.kill(os.getpid(), {int(signal.SIGKILL)})", job="dies")
    assert (outcome.status, outcome.code) == ("failed", "crashed")
    assert "the application's process ended with signal 9" in outcome.message


def test_the_environment_of_it_has_no_secret(attack: Attack) -> None:
    os.environ["FEDLEARN_PLANTED"] = "a passphrase"
    try:
        body = """
        for name, value in os.environ.items():
            print("env", name)
        print("open", sorted(int(each) for each in os.listdir("/proc/self/fd")))
        honest(grid)
        """
        outcome, _, lines = attack(body, job="environment")
    finally:
        del os.environ["FEDLEARN_PLANTED"]
    assert outcome.status == "finished", (outcome, lines)
    assert not [line for line in lines if "PLANTED" in line]
    (descriptors,) = [line for line in lines if line.startswith("open")]
    assert descriptors.count(",") <= 4
