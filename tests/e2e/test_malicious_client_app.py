"""A ClientApp that attacks: each promise about what it cannot reach or send, from inside.

The app runs as in the field, in its own process; the client that asks it is this process, with
a secret in its memory, an open TLS port and a folder of another job beside.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import ConfigRecord, Message, Metadata, RecordDict

from edge.client.flower.app_process import AppFailed, AppLimits
from edge.client.flower.fleet import Work
from edge.client.flower.replies import WITHHELD, ClientPlan, Replies
from fedlearn.app.array_records import arrays_of, record_of
from fedlearn.app.flower import CALL, Packer, flatten, inflate, unpack
from fedlearn.app.message import Head
from fedlearn.privacy import PrivacySpec
from fedlearn.sandbox import Protection, report
from tests.harness.flower_federation import write_app
from tests.harness.job_plans import job_plan

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not report().applied >= {Protection.LANDLOCK, Protection.SECCOMP},
        reason=f"this kernel has no Landlock or no seccomp: {report()}",
    ),
]

MODEL: dict[str, npt.NDArray[Any]] = {
    "layer.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "layer.bias": np.zeros(3),
}
PRIVACY = PrivacySpec(clip=0.5, noise_multiplier=1.0, epsilon=100.0, delta=1e-5)
SECRET = "patient-4711-has-the-disease"

PROJECT = """
[project]
name = "tiny"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "tiny.server_app:app"
clientapp = "tiny.client_app:app"
[tool.flwr.app.config]
first = ""
second = ""
"""

HEAD = f"""
import ctypes, errno, os, signal, socket, sys, time
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
SECRET = {SECRET!r}

def refused(action, *arguments):
    try:
        action(*arguments)
    except OSError:
        return 1
    return 0

def answer(message, arrays=None, **metrics):
    content = {{}} if arrays is None else {{"arrays": arrays}}
    content["metrics"] = MetricRecord({{"num-examples": 5, **metrics}})
    return Message(RecordDict(content), reply_to=message)
"""


@dataclass(frozen=True)
class Reply:
    reason: str
    content: RecordDict

    @property
    def metrics(self) -> dict[str, Any]:
        assert self.reason == ""
        return dict(self.content["metrics"].items())


class Client:
    """The client of one job, without a coordinator."""

    def __init__(
        self,
        folder: Path,
        code: str,
        bundle: bytes,
        privacy: PrivacySpec | None = None,
        run_config: Mapping[str, Any] | None = None,
        **plan: Any,
    ) -> None:
        sites = ("north",)
        job = job_plan(job="attacked", sites=sites, seed=7, privacy=privacy, run_config=run_config)
        self.charged: list[str] = []
        self.replies = Replies(
            ClientPlan(
                spec=job.spec,
                site="north",
                bundle=bundle,
                **plan,
            ),
            directory=folder,
            charge=self.charged.append,
        )

    def work(self, round_: int = 1, kind: str = "train") -> Work:
        content = RecordDict({"arrays": record_of(MODEL)})
        packed = Packer().content(content, **{CALL: ConfigRecord({"round": round_})})
        metadata = Metadata(1, "", 1, 5, "", "", time.time(), 600.0, kind)
        flat = flatten([Message(metadata=metadata, content=packed)])
        head, *parts = flat.frames(0)
        names = Head.from_bytes(head).parts
        return Work(id=flat.ids[0], head=head, objects=dict(zip(names, parts, strict=True)))

    def ask(self, round_: int = 1, kind: str = "train") -> Reply:
        flat = self.replies.reply(self.work(round_, kind))
        head, *parts = flat.frames(0)
        found = inflate(head, dict(zip(Head.from_bytes(head).parts, parts, strict=True)))
        if found.has_error():
            return Reply(found.error.reason, RecordDict())
        return Reply("", unpack(found.content, max_bytes=1 << 30))


Make = Callable[..., Client]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make a client whose app has ``code``; ``first`` and ``second`` are its configuration."""
    from server.flower.application.bundle import build

    made: list[Client] = []

    def act(code: str, *, first: object = "", second: object = "", **plan: Any) -> Client:
        text = HEAD + textwrap.dedent(code)
        source = write_app(tmp_path / f"src{len(made)}", client=text, project=PROJECT)
        plan["run_config"] = {"first": str(first), "second": str(second)}
        client = Client(tmp_path / f"job{len(made)}", text, build(source), **plan)
        made.append(client)
        return client

    yield act
    for client in made:
        client.replies.close()


@pytest.fixture
def ask(make: Make) -> Callable[..., Reply]:
    """Have an app answer one message of training."""

    def act(code: str, **more: Any) -> Reply:
        client = make(code, **more)
        client.replies.load()
        return client.ask()

    return act


Ask = Callable[..., Reply]


# --- what it cannot reach


def test_keys_in_the_clients_memory_are_out_of_reach(ask: Ask) -> None:
    secret = ctypes.create_string_buffer(b"the private key of this client")
    found = ask(
        """
        def by_file(pid, address):
            with open(f"/proc/{pid}/mem", "rb", 0) as memory:
                memory.seek(address)
                memory.read(16)

        def by_ptrace(pid):
            if ctypes.CDLL(None, use_errno=True).ptrace(16, pid, 0, 0) == -1:
                raise OSError(ctypes.get_errno(), "ptrace")

        @app.train()
        def train(message, context):
            address = int(context.run_config["first"])
            pids = [int(context.run_config["second"]), os.getppid(), 1]
            done = [not refused(by_file, pid, address) for pid in pids]
            done += [not refused(by_ptrace, pid) for pid in pids]
            try:
                seen = sum(name.isdecimal() for name in os.listdir("/proc"))
            except OSError:  # where it has no /proc of its own
                seen = 0
            return answer(message, reached=sum(done), seen=seen)
        """,
        first=ctypes.addressof(secret),
        second=os.getpid(),
    )
    assert found.metrics["reached"] == 0
    # At most the first process of its namespace, and itself.
    assert found.metrics["seen"] <= 2


def test_no_connection_of_the_client_is_open_to_it_and_none_can_be_made(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as coordinator:
        with socket.create_connection(coordinator.getsockname()) as session:
            os.set_inheritable(session.fileno(), True)
            found = ask(
                """
                def kinds():
                    for number in range(64):
                        try:
                            yield socket.socket(fileno=os.dup(number)).family
                        except OSError:
                            pass

                @app.train()
                def train(message, context):
                    port = int(context.run_config["first"])
                    other = [family for family in kinds() if family != socket.AF_UNIX]
                    alone = refused(socket.create_connection, ("127.0.0.1", port), 1)
                    unix = len([family for family in kinds() if family == socket.AF_UNIX])
                    return answer(message, other=len(other), alone=alone, unix=unix)
                """,
                first=coordinator.getsockname()[1],
            )
    assert (found.metrics["other"], found.metrics["unix"], found.metrics["alone"]) == (0, 1, 1)


def test_files_of_the_client_and_of_other_jobs_are_out_of_reach(ask: Ask, tmp_path: Path) -> None:
    other = tmp_path / "job-of-others"
    other.mkdir()
    (other / "model").write_text("weights")
    found = ask(
        """
        @app.train()
        def train(message, context):
            folder = context.run_config["first"]
            done = refused(open, folder + "/model") + refused(os.listdir, folder)
            done += refused(open, "/etc/shadow") + refused(open, "/proc/1/environ")
            done += refused(open, folder + "/planted", "w") + refused(open, "/usr/planted", "w")
            done += refused(os.symlink, "x", folder + "/link")
            return answer(message, done=done, secret=len(os.environ.get("THE_KEY", "")))
        """,
        first=other,
    )
    assert (found.metrics["done"], found.metrics["secret"]) == (7, 0)
    assert [path.name for path in other.iterdir()] == ["model"]


def test_the_sites_data_is_readable_and_not_writable(ask: Ask, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "rows.csv").write_text("1\n2\n")
    (data / "rows.csv").chmod(0o600)
    found = ask(
        """
        @app.train()
        def train(message, context):
            path = context.node_config["data"] + "/rows.csv"
            rows = len(open(path).readlines())
            return answer(message, rows=rows, kept=refused(open, path, "a"))
        """,
        data=data,
        node_config={"data": str(data)},
    )
    assert (found.metrics["rows"], found.metrics["kept"]) == (2, 1)


def test_its_own_code_cannot_be_changed_for_the_next_call(ask: Ask) -> None:
    found = ask(
        """
        @app.train()
        def train(message, context):
            return answer(message, kept=refused(open, __file__, "a"))
        """
    )
    assert found.metrics["kept"] == 1


# --- what it cannot skip


_PATCHES = """
import fedlearn.privacy.client, fedlearn.privacy.chain, fedlearn.app.flower, fedlearn.update.arrays
import edge.client.flower.replies
def pass_on(self, update, reference):
    return dict(update)
fedlearn.privacy.client.ClientPrivacy.outgoing = pass_on
fedlearn.privacy.client.ClientPrivacy.outgoing_metrics = lambda self, metrics: dict(metrics)
fedlearn.privacy.chain.Clip.apply = lambda self, delta: delta
edge.client.flower.replies.Replies._private = lambda self, privacy, content, asked, kind: content
@app.train()
def train(message, context):
    model = message.content["arrays"]
    record = ArrayRecord({name: Array(model[name].numpy() + 1000) for name in model})
    return answer(message, record, loss=4711.0)
"""


def test_clipping_cannot_be_patched_away(make: Make) -> None:
    client = make(_PATCHES, privacy=PRIVACY)
    client.replies.load()
    found = client.ask()
    assert found.metrics == {"num-examples": 1}
    update = arrays_of(found.content["arrays"])
    moved = sum(float(np.sum((update[name] - MODEL[name]) ** 2)) for name in MODEL)
    assert 0.49 < moved**0.5 <= 0.5
    assert len(client.charged) == 1


def test_without_privacy_the_update_is_what_the_app_made(ask: Ask) -> None:
    found = ask(_PATCHES)
    assert found.metrics == {"num-examples": 5, "loss": 4711.0}
    update = arrays_of(found.content["arrays"])
    assert all((update[name] == MODEL[name] + 1000).all() for name in MODEL)


# --- what it cannot send under privacy


_WAYS = {
    "error": "raise ValueError(SECRET)",
    "class": "raise type(SECRET, (Exception,), {})('x')",
    "our-error": (
        "from fedlearn.errors import UpdateRejected; raise UpdateRejected(SECRET, hint=SECRET)"
    ),
    "error-message": (
        "from flwr.app import Error; return Message(Error(1, SECRET), reply_to=message)"
    ),
    "array-name": "return answer(message, ArrayRecord({SECRET: Array(np.zeros(3))}))",
    "added-array": (
        "record = message.content['arrays']; record[SECRET] = record['layer.bias']; "
        "return answer(message, record)"
    ),
    "not-finite": (
        "arrays = {n: Array(a.numpy() * np.nan) for n, a in message.content['arrays'].items()}; "
        "return answer(message, ArrayRecord(arrays))"
    ),
    "exit": "print(SECRET); os._exit(ord(SECRET[0]))",
    "signal": "os.kill(os.getpid(), ord(SECRET[0]) % 15 + 1)",
    "nonsense": "return Message(RecordDict({'arrays': ConfigRecord()}), SECRET, 'train')",
    "no-unicode": "raise ValueError('\\udc80' + SECRET)",
}


@pytest.mark.parametrize("way", _WAYS)
def test_every_failure_is_one_constant_text(ask: Ask, way: str) -> None:
    code = f"@app.train()\ndef train(message, context):\n    {_WAYS[way]}\n"
    found = ask(code, privacy=PRIVACY)
    assert found.reason == WITHHELD


def test_a_failure_while_it_is_loaded_is_the_same_text(make: Make) -> None:
    client = make("raise RuntimeError(SECRET)", privacy=PRIVACY)
    with pytest.raises(AppFailed) as caught:
        client.replies.load()
    assert (str(caught.value), caught.value.hint) == (WITHHELD, "")


def test_no_name_and_no_number_of_metrics_leaves(ask: Ask) -> None:
    found = ask(
        """
        @app.train()
        def train(message, context):
            content = RecordDict()
            content[SECRET + "1"] = message.content["arrays"]
            content[SECRET + "2"] = MetricRecord({SECRET: 1, "loss": 4711.0, "num-examples": 4711})
            content[SECRET + "3"] = ConfigRecord({"x": SECRET})
            return Message(content, reply_to=message)
        """,
        privacy=PRIVACY,
    )
    assert found.reason == ""
    assert list(found.content) == ["arrays", "metrics"]
    assert found.metrics == {"num-examples": 1}
    assert list(found.content["arrays"]) == list(MODEL)


def test_evaluation_sends_no_arrays(make: Make) -> None:
    client = make(
        """
        @app.evaluate()
        def evaluate(message, context):
            return answer(message, message.content["arrays"])
        """,
        privacy=PRIVACY,
    )
    client.replies.load()
    assert client.ask(kind="evaluate").reason == WITHHELD
    assert client.charged == []


def test_without_privacy_the_reason_is_reported(make: Make) -> None:
    client = make("@app.train()\ndef train(message, context):\n    raise ValueError(SECRET)\n")
    client.replies.load()
    found = client.ask().reason
    assert re.fullmatch(rf"tiny/client_app\.py:\d+: ValueError: {SECRET}", found)
    client = make("import a_library_that_is_not_here")
    with pytest.raises(AppFailed, match="ModuleNotFoundError: No module named 'a_library_that"):
        client.replies.load()


# --- what it cannot hold up


def alive(marker: str) -> int:
    found = 0
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                found += marker.encode() in (path / "cmdline").read_bytes()
            except OSError:
                continue
    return found


def test_an_app_that_hangs_is_ended_and_the_next_call_is_answered(make: Make) -> None:
    client = make(
        """
        @app.train()
        def train(message, context):
            calls = context.state.get("calls", ConfigRecord({"n": 0}))["n"] + 1
            context.state["calls"] = ConfigRecord({"n": calls})
            if message.metadata.group_id == "" and calls == 2:
                time.sleep(600)
            return answer(message, calls=calls)

        @app.evaluate()
        def evaluate(message, context):
            return answer(message, calls=context.state["calls"]["n"])
        """,
        limits=AppLimits(seconds=3.0),
    )
    client.replies.load()
    assert client.ask(1).metrics["calls"] == 1
    started = time.monotonic()
    assert client.ask(2).reason == "the app gave no answer in 3 s"
    assert time.monotonic() - started < 10
    # A new process finds the state from before the call that was not answered.
    assert client.ask(2, "evaluate").metrics["calls"] == 1


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("os._exit(3)", "the app's process ended with status 3"),
        ("os.kill(os.getpid(), 9)", "the app's process ended with signal 9"),
        (
            "held = []\n    while True: held.append(bytearray(b'x') * (8 << 20))",
            "MiB of memory, at most 900 MiB",
        ),
        (
            "while True:\n        try: os.fork() or time.sleep(600)\n        except OSError: pass",
            "processes and threads, at most|no answer in 15 s",
        ),
        (
            "for n in range(10**6):\n        open(f'{n}', 'wb').write(bytes(8 << 20))"
            "\n        time.sleep(0.01)",
            "MiB on disk, at most 64 MiB",
        ),
    ],
    ids=["exits", "killed", "allocates", "forks", "writes"],
)
def test_an_app_that_ends_or_takes_too_much_is_named_and_started_again(
    make: Make, code: str, reason: str
) -> None:
    client = make(
        f"""
@app.train()
def train(message, context):
    {code}

@app.evaluate()
def evaluate(message, context):
    return answer(message, fine=1)
""",
        limits=AppLimits(seconds=15, memory_bytes=900 << 20, disk_bytes=64 << 20),
    )
    client.replies.load()
    assert re.search(reason, client.ask().reason)
    if "disk" not in reason:  # what it wrote is still there
        assert client.ask(kind="evaluate").metrics["fine"] == 1


def test_nothing_that_it_started_outlives_the_client(make: Make) -> None:
    marker = f"marker-{uuid.uuid4()}"
    client = make(
        """
        import subprocess
        @app.train()
        def train(message, context):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    program = [sys.executable, "-c", "import time; time.sleep(600)"]
                    subprocess.Popen([*program, context.run_config["first"]],
                                     start_new_session=True).wait()
                os._exit(0)
            time.sleep(1)
            return answer(message)
        """,
        first=marker,
    )
    client.replies.load()
    assert client.ask().reason == ""
    assert alive(marker) == 1
    client.replies.close()
    assert alive(marker) == 0


def test_a_state_that_is_too_large_is_refused_and_the_one_before_it_stays(make: Make) -> None:
    client = make(
        """
        @app.train()
        def train(message, context):
            size = 300 << 20 if "x" in context.state else 5
            context.state["x"] = ConfigRecord({"x": bytes(size)})
            return answer(message, size=size)

        @app.evaluate()
        def evaluate(message, context):
            return answer(message, size=len(context.state["x"]["x"]))
        """,
        limits=AppLimits(seconds=60, memory_bytes=1 << 30),
    )
    client.replies.load()
    assert client.ask(1).metrics["size"] == 5
    assert "bytes in its state; at most 268435456 are kept" in client.ask(2).reason
    assert client.ask(2, "evaluate").metrics["size"] == 5


# --- the channel to the client


_CHANNEL = """
import array, fcntl, json, struct
def channel():
    for number in range(3, 64):
        try:
            found = socket.socket(fileno=os.dup(number))
        except OSError:
            continue
        if found.family == socket.AF_UNIX:
            return found
def send(header, files=()):
    body = json.dumps(header).encode()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
    channel().sendmsg([struct.pack(">I", len(body)) + body], rights)
def file(size, sealed=True):
    found = os.memfd_create('x', 2)
    os.ftruncate(found, size)
    if sealed:
        fcntl.fcntl(found, fcntl.F_ADD_SEALS, 14)
    return found
def answered(blobs, files=(), announced=(), number=2, split=1):
    header = {'number': number, 'failure': None, 'split': split}
    send({**header, 'files': list(announced), 'blobs': blobs}, files)
"""


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "found = file(1 << 20, sealed=False)\n"
            "    answered([[0, 0, 1 << 20]], [found], [1 << 20])\n"
            "    os.ftruncate(found, 0)",
            "not sealed against shrinking, growing and writing",
        ),
        (
            "answered([[0, 0, 1 << 20]], [file(1 << 19)], [1 << 20])",
            "has 524288 bytes, and 1048576 are announced",
        ),
        (
            "answered([[0, 0, 1 << 20]], [file(1 << 21)], [1 << 20])",
            "has 2097152 bytes, and 1048576 are announced",
        ),
        ("answered([[0, 0, 2]], [file(1)], [1])", "bytes 0 to 2 of a file that has 1"),
        ("answered([[0, 0, 1]], [file(1)], [1 << 40])", "at most"),
        ("answered([[0, 0, 1]], [file(1), file(1)], [1])", "has 2 files, and 1 are announced"),
        ("answered([[0, 0, 1]], [file(1)] * 65, [1] * 65)", "more than 64 files"),
        (
            "answered([[0, 0, 1 << 23]], [file(1 << 23)], [1 << 23])",
            "head of a message has at most",
        ),
        ("answered([], number=7, split=0)", "a malformed answer"),
        ("send({'files': [], 'blobs': []})", "a malformed answer"),
        ("send([1])", "header is not a JSON object"),
        ("answered([1 << 60], split=0)", "at most"),
        ("answered([], split=0)", "a malformed answer"),
        ("answered([2, 2], split=2); channel().sendall(b'{}[]')", "a malformed answer"),
        ("channel().sendall(b'x' * 100)", "a record's header has"),
        ("channel().shutdown(socket.SHUT_RDWR)", "the app's process ended"),
    ],
    ids=[
        "shrinks",
        "too-small",
        "too-large",
        "beyond",
        "huge-file",
        "second-file",
        "many-files",
        "huge-head",
        "number",
        "empty",
        "list",
        "huge",
        "no-message",
        "odd-head",
        "noise",
        "closed",
    ],
)
def test_an_answer_that_is_made_up_is_refused(make: Make, code: str, reason: str) -> None:
    client = make(
        _CHANNEL
        + f"""
@app.train()
def train(message, context):
    {code}
    time.sleep(30)

@app.evaluate()
def evaluate(message, context):
    return answer(message, fine=1)
""",
        limits=AppLimits(seconds=30.0),
    )
    client.replies.load()
    started = time.monotonic()
    assert reason in client.ask().reason
    assert time.monotonic() - started < 20
    assert client.ask(kind="evaluate").metrics["fine"] == 1
