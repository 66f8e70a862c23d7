"""What an app writes at a site: its owner reads it, and nobody else does.

The first tests call a client of one job without a coordinator, whose app attacks; the others run a
whole federation.
"""

from __future__ import annotations

import json
import textwrap
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.app import ConfigRecord, Message, Metadata, RecordDict

from attestation.config import InconsistentValues
from edge.client.app_log import PREFIX, DiscardedAppLog, SealingAppLog
from edge.client.flower.app_process import AppFailed, AppLimits
from edge.client.flower.fleet import Work
from edge.client.flower.replies import WITHHELD, ClientPlan, Replies
from fedlearn.api.app_logs import AppLogs, fetch_app_logs, open_app_logs
from fedlearn.app.array_records import record_of
from fedlearn.app.flower import CALL, Packer, flatten, inflate
from fedlearn.app.message import Head
from fedlearn.errors import JobError, KeyReleaseDenied, TransportError
from fedlearn.identity.login import OperatorLogin, ca_pin
from fedlearn.job.app_log import SealedAppLog
from fedlearn.job.owner_key import owner_key_text
from fedlearn.privacy import PrivacySpec
from tests.harness.federation import FederationHarness
from tests.harness.flower_federation import write_app
from tests.harness.job_plans import job_plan

pytestmark = pytest.mark.e2e

OWNER = X25519PrivateKey.generate()
SECRET = "patient-4711-has-the-disease"

HEAD = """
import ctypes, logging, os, subprocess, sys, threading, time, warnings
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
SECRET = "patient-4711-has-the-disease"

@app.evaluate()
def evaluate(message, context):
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)
"""


@dataclass
class Client:
    """A client without a coordinator; what it delivers is kept as the coordinator keeps it."""

    replies: Replies
    delivered: list[SealedAppLog] = field(default_factory=list)
    job: Any = None

    def ask(self, round_: int = 1, kind: str = "train") -> str:
        """Have the app answer; return the reason of a failure."""
        content = RecordDict({"arrays": record_of({"w": np.zeros(3, np.float32)})})
        packed = Packer().content(content, **{CALL: ConfigRecord({"round": round_})})
        metadata = Metadata(1, "", 1, 5, "", "", time.time(), 600.0, kind)
        flat = flatten([Message(metadata=metadata, content=packed)])
        head, *parts = flat.frames(0)
        names = Head.from_bytes(head).parts
        work = Work(id=flat.ids[0], head=head, objects=dict(zip(names, parts, strict=True)))
        head, *parts = self.replies.reply(work).frames(0)
        found = inflate(head, dict(zip(Head.from_bytes(head).parts, parts, strict=True)))
        return found.error.reason if found.has_error() else ""

    def read(self) -> AppLogs:
        return open_app_logs(self.delivered, self.job.name, self.job.digest(), "north", OWNER)

    def texts(self, round_: int) -> list[str]:
        return [line.text for log in self.read().logs if log.round == round_ for line in log.lines]


Make = Callable[..., Client]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make a client whose app has ``code``."""
    from server.flower.application.bundle import build

    made: list[Client] = []

    def act(code: str, *, deliver: Any = None, **limits: Any) -> Client:
        text = HEAD + textwrap.dedent(code)
        bundle = build(write_app(tmp_path / f"src{len(made)}", client=text))
        public = owner_key_text(OWNER.public_key().public_bytes_raw())
        spec = replace(
            job_plan(job="logged", sites=("north",)).spec, owner_key=public, app_logs="sealed"
        )
        delivered: list[SealedAppLog] = []
        log = SealingAppLog(spec, site="north", client="c1", deliver=deliver or delivered.append)
        plan = ClientPlan(spec=spec, site="north", bundle=bundle, limits=AppLimits(**limits))
        replies = Replies(
            plan, directory=tmp_path / f"job{len(made)}", charge=lambda _: None, log=log
        )
        made.append(Client(replies, delivered, spec))
        return made[-1]

    yield act
    for client in made:
        client.replies.close()


def test_what_is_printed_logged_and_raised_reaches_the_owner(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    client = make(
        """
        print("imported")

        @app.train()
        def train(message, context):
            print("to stdout", flush=True)
            os.write(1, b"native one\\n")
            ctypes.CDLL(None).puts(b"native two")
            ctypes.CDLL(None).fflush(None)
            subprocess.run(["/bin/echo", "of a child"])
            sys.stderr.write("to stderr\\n")
            logging.getLogger("mine").info("learning rate %s", 0.1)
            warnings.warn("careful")
            thread = threading.Thread(target=lambda: {}["in a thread"])
            thread.start()
            thread.join()
            context.run_config["learning_rate"]
        """
    )
    client.replies.load()
    assert client.texts(0) == ["imported"]
    reason = client.ask(round_=3)
    logs = client.read()
    lines = [line for log in logs.logs if log.round == 3 for line in log.lines]
    assert [line.text for line in lines if line.level == "output"] == [
        *("to stdout", "native one", "native two", "of a child", "to stderr")
    ]
    assert [(line.level, line.text, line.logger) for line in lines if line.logger] == [
        ("info", "learning rate 0.1", "mine"),
        ("warning", "UserWarning: careful", "py.warnings"),
    ]
    # The whole traceback, with the file of the bundle and the line in it.
    number = lines[-1].line
    assert (lines[-1].text, lines[-1].file) == ("KeyError: 'learning_rate'", "tiny/client_app.py")
    source = f'  File "tiny/client_app.py", line {number}, in train'
    assert source in [line.text for line in lines]
    assert '    context.run_config["learning_rate"]' in [line.text for line in lines]
    assert "KeyError: 'in a thread'" in [line.text for line in lines]
    assert reason == f"tiny/client_app.py:{number}: KeyError: 'learning_rate'"
    assert logs.faults == ()
    # The log of the client itself, which the host of a TEE reads, has nothing of it.
    written = capfd.readouterr()
    for text in ("imported", "native", "learning", "careful", "KeyError"):
        assert text not in written.out + written.err


def test_the_log_of_a_crash_arrives(make: Make) -> None:
    client = make(
        """
        @app.train()
        def train(message, context):
            print("before the end")
            ctypes.string_at(0)
        """
    )
    client.replies.load()
    assert client.ask(round_=2) == "the app's process ended with signal 11"
    texts = client.texts(2)
    assert texts[0] == "before the end"
    assert "Fatal Python error: Segmentation fault" in texts
    assert texts[-1].endswith("AppFailed: the app's process ended with signal 11")
    # The app is started again, and its log goes on in the same stream.
    client.ask(round_=3)
    assert client.texts(3)[0] == "before the end"
    assert [log.sequence for log in client.delivered] == [0, 1]


def test_the_log_of_an_app_that_cannot_be_loaded_arrives(make: Make) -> None:
    client = make("print('importing')\nimport a_module_that_is_not_there\n")
    with pytest.raises(AppFailed, match=r"tiny/client_app\.py:\d+: ModuleNotFoundError"):
        client.replies.load()
    texts = client.texts(0)
    assert texts[0] == "importing"
    assert texts[-1] == "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"


@pytest.mark.long
def test_an_app_that_hangs_is_read_until_it_is_ended(make: Make) -> None:
    client = make(
        """
        @app.train()
        def train(message, context):
            print("and now nothing", flush=True)
            time.sleep(600)
        """,
        seconds=2.0,
    )
    client.replies.load()
    assert "no answer in 2 s" in client.ask()
    assert client.texts(1)[0] == "and now nothing"


def test_a_flood_is_cut_with_a_note_and_the_end_is_kept(make: Make) -> None:
    client = make(
        """
        @app.train()
        def train(message, context):
            for _ in range(200):
                os.write(1, (b"x" * 1023 + b"\\n") * 1024)  # 200 MiB in all
            raise ValueError("after the flood")
        """
    )
    client.replies.load()
    assert client.ask().endswith("ValueError: after the flood")
    (log,) = client.read().logs
    assert log.lines[0].text == "x" * 1023
    assert log.lines[-1].text == "ValueError: after the flood"
    assert log.left_out > 200 * 1024 - 2000
    assert len(client.delivered[0].sealed) < 1024 * 1024


def test_binary_output_is_data(make: Make) -> None:
    client = make(
        """
        @app.train()
        def train(message, context):
            os.write(2, bytes(range(256)) * 40)
            os.write(2, b"\\n\\x1e[1]\\n\\x1e[\\"info\\", \\"forged\\", \\"a\\", \\"b.py\\", 3]\\n")
            raise ValueError("\\x1b]0;title\\x07")
        """
    )
    client.replies.load()
    client.ask()
    texts = client.texts(1)
    assert texts[-1] == "ValueError: \x1b]0;title\x07"
    assert any("\\xff" in text for text in texts)
    # An app may give its lines any level: they are its own, under the name of its site.
    assert "forged" in texts


def test_a_descriptor_that_is_closed_ends_nothing(make: Make) -> None:
    client = make(
        """
        @app.train()
        def train(message, context):
            print("open", flush=True)
            os.close(1)
            os.close(2)
            logging.getLogger("mine").warning("still here")
            raise ValueError("closed")
        """
    )
    client.replies.load()
    assert client.ask(round_=1).endswith("ValueError: closed")
    assert client.texts(1)[:2] == ["open", "still here"]
    assert "OSError" in client.ask(round_=2)  # its own print has no descriptor any more
    assert client.texts(2)[-1].startswith("OSError: ")


def test_a_child_that_prints_later_is_read_in_the_next_round_or_never(make: Make) -> None:
    client = make(
        """
        @app.train()
        def train(message, context):
            if os.fork() == 0:
                os.setsid()
                time.sleep(0.4)
                os.write(1, b"from the child\\n")
                time.sleep(600)
            raise ValueError("parent")
        """
    )
    client.replies.load()
    start = time.monotonic()
    client.ask(round_=1)
    assert time.monotonic() - start < 5  # the child holds the pipe, and nobody waits for it
    assert "from the child" not in client.texts(1)
    time.sleep(1)
    client.ask(round_=2, kind="evaluate")
    assert "from the child" in client.texts(2)


def test_an_app_cannot_reach_the_key_or_another_name(make: Make) -> None:
    client = make(
        """
        import gc

        @app.train()
        def train(message, context):
            kinds = {type(each).__name__ for each in gc.get_objects()}
            print("sealing:", sorted(kinds & {"SealingAppLog", "X25519PublicKey", "AppLogName"}))
            print("names:", sorted(name for name in os.environ if "OWNER" in name))
            raise ValueError
        """
    )
    client.replies.load()
    client.ask()
    assert client.texts(1)[:2] == ["sealing: []", "names: []"]
    # Under every other name it does not open.
    for changed in ("south", "nort"):
        with pytest.raises(KeyReleaseDenied, match="none of the 1 logs"):
            open_app_logs(client.delivered, client.job.name, client.job.digest(), changed, OWNER)


def test_a_log_that_cannot_be_delivered_leaves_a_gap_and_the_round_goes_on(make: Make) -> None:
    kept: list[SealedAppLog] = []

    def deliver(log: SealedAppLog) -> None:
        if log.sequence == 1:
            raise TransportError("the coordinator does not answer")
        kept.append(log)

    client = make(
        """
        @app.train()
        def train(message, context):
            print("round")
            return Message(RecordDict({"arrays": message.content["arrays"]}), reply_to=message)
        """,
        deliver=deliver,
    )
    client.replies.load()
    for round_ in (1, 2, 3):
        assert client.ask(round_=round_) == ""
    found = open_app_logs(kept, client.job.name, client.job.digest(), "north", OWNER)
    assert [log.round for log in found.logs] == [1, 3]
    assert found.faults == ("log 1 of client c1 is missing before round 3",)


def test_under_privacy_no_byte_of_what_the_app_writes_leaves(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from server.flower.application.bundle import build

    code = HEAD + textwrap.dedent(
        """
        print(SECRET)

        @app.train()
        def train(message, context):
            print(SECRET)
            logging.getLogger("mine").error(SECRET)
            raise ValueError(SECRET)
        """
    )
    bundle = build(write_app(tmp_path / "src", client=code))
    privacy = PrivacySpec(clip=0.5, noise_multiplier=1.0, epsilon=100.0, delta=1e-5)
    spec = job_plan(job="private", sites=("north",), privacy=privacy).spec
    public = owner_key_text(OWNER.public_key().public_bytes_raw())
    with pytest.raises(InconsistentValues, match="no budget of"):
        replace(spec, owner_key=public, app_logs="sealed")
    # A coordinator or an agent that makes such a job all the same: the client does not seal.
    forged = replace(spec, owner_key=public)
    object.__setattr__(forged, "app_logs", "sealed")
    delivered: list[SealedAppLog] = []
    with pytest.raises(JobError, match="may not have logs"):
        SealingAppLog(forged, site="north", client="c1", deliver=delivered.append)
    replies = Replies(
        ClientPlan(spec=spec, site="north", bundle=bundle),
        directory=tmp_path / "job",
        charge=lambda _: None,
        log=DiscardedAppLog(),
    )
    client = Client(replies, delivered, spec)
    try:
        replies.load()
        assert client.ask() == WITHHELD
    finally:
        replies.close()
    written = capfd.readouterr()
    assert SECRET not in written.out + written.err
    assert delivered == []


# --- a whole federation ---------------------------------------------------------------

LOGGED = """
import logging

from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    site = context.node_config["site"]
    print("printed at", site)
    logging.getLogger("mine").warning("logged at %s", site)
    if site == context.run_config["fail-site"]:
        {}["learning_rate"]
    content = RecordDict({"arrays": message.content["arrays"]})
    content["metrics"] = MetricRecord({"num-examples": 5})
    return Message(content, reply_to=message)

@app.evaluate()
def evaluate(message, context):
    metrics = MetricRecord({"num-examples": 5, "error": 0.0})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
"""

WARNS, FAILS = (
    1 + LOGGED.splitlines().index(text)
    for text in (
        '    logging.getLogger("mine").warning("logged at %s", site)',
        '        {}["learning_rate"]',
    )
)


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FederationHarness]:
    modes = {"site-a": "sealed", "site-b": "sealed", "site-c": "insecure-plain"}
    folder = tmp_path_factory.mktemp("app-logs")
    with FederationHarness(folder, client_app=LOGGED, app_logs=modes) as made:
        yield made


def test_the_owner_reads_the_logs_of_a_job_and_others_do_not(harness: FederationHarness) -> None:
    job = harness.job(
        "logged", rounds=2, quorum=2, app_logs="sealed", config={"fail-site": "site-b"}
    ).submit()
    job.finish()
    owner = harness.owner.file
    # The site that does not allow logs runs the job, and states that it sends none.
    (start,) = [e for e in job.of("client.starting") if "accept.app_logs" in e.detail]
    assert start.site == "site-c"
    assert len(job.of("update.received")) == 4

    login = ("--operator", harness.federation.login)
    of_a = harness.command(
        *("fedlearn", "job", "logs", job.name, "--site", "site-a", "--key", owner, *login)
    ).stdout
    assert "round 1  c1  output    printed at site-a" in of_a
    place = f"[small/client_app.py:{WARNS}]"
    assert f"round 2  c1  warning   mine: logged at site-a  {place}" in of_a

    of_b = json.loads(
        harness.command(
            *("fedlearn", "job", "logs", job.name, "--site", "site-b", "--round", "2"),
            *("--key", owner, "--json", *login),
        ).stdout
    )
    assert (of_b["schema"], of_b["faults"]) == ("fedlearn job logs/1", [])
    last = of_b["logs"][-1]["lines"][-1]
    assert {log["round"] for log in of_b["logs"]} == {2}
    assert (last["level"], last["text"]) == ("error", "KeyError: 'learning_rate'")
    assert (last["file"], last["line"]) == ("small/client_app.py", FAILS)

    none = harness.command(
        *("fedlearn", "job", "logs", job.name, "--site", "site-c", "--key", owner, *login)
    ).stderr
    assert "no logs of site site-c" in none

    other = harness.folder / "other.pem"
    from fedlearn.cli.demo.proofs import OwnerKey

    OwnerKey.make(other)
    refused = harness.command(
        *("fedlearn", "job", "logs", job.name, "--site", "site-a", "--key", other, *login),
        ok=False,
    )
    assert refused.returncode != 0
    assert "opens with this key" in refused.stderr
    unknown = harness.command(
        *("fedlearn", "job", "logs", job.name, "--site", "nowhere", "--key", owner, *login),
        ok=False,
    )
    assert "has no site 'nowhere'" in unknown.stderr

    # An owner who has no login of an operator.
    pin = ca_pin(OperatorLogin.load(harness.federation.login).ca)
    gate = tomllib.loads(harness.server_toml.read_text())["listen"]["gate"]
    as_owner = harness.command(
        *("fedlearn", "job", "logs", job.name, "--site", "site-a", "--key", owner),
        *("--coordinator", gate, "--ca-pin", pin),
    ).stdout
    assert as_owner == of_a

    # No file of the coordinator and of the two sites has a line in the clear.
    for path in harness.folder.rglob("*"):
        if path.is_file() and "app" not in path.relative_to(harness.folder).parts:
            data = path.read_bytes()
            assert b"printed at site-a" not in data, path
            assert b"printed at site-b" not in data, path
    assert not any("printed at" in event.encode() for event in job.events())


def test_logs_of_another_run_site_or_order_do_not_pass(harness: FederationHarness) -> None:
    from fedlearn.identity.keyfile import read_private_key

    key = read_private_key(harness.owner.file)
    first = harness.run("order", rounds=3, quorum=2, app_logs="sealed")
    harness.run("order-other", rounds=1, quorum=2, app_logs="sealed")
    operator = harness.operator
    state = operator.get_job(first.name)
    stored = list(operator.fetch_app_logs(first.name, "site-a"))
    assert [log.sequence for log in stored] == list(range(len(stored)))

    def opened(logs: list[SealedAppLog], site: str = "site-a") -> AppLogs:
        return open_app_logs(logs, state.run_id, bytes.fromhex(state.id), site, key)

    good = opened(stored)
    assert good.faults == ()
    assert good == fetch_app_logs(operator, first.name, "site-a", key)
    replayed = list(operator.fetch_app_logs("order-other", "site-a"))
    with pytest.raises(KeyReleaseDenied, match="none of the"):
        opened(replayed)
    mixed = opened([*stored, *replayed])
    assert mixed.logs == good.logs
    assert len(mixed.faults) == len(replayed)
    assert "does not open" in mixed.faults[0]
    with pytest.raises(KeyReleaseDenied, match="none of the"):
        opened(list(operator.fetch_app_logs(first.name, "site-b")))
    dropped = opened([stored[0], *stored[2:]])
    assert [fault for fault in dropped.faults if "is missing" in fault]
    swapped = opened([stored[1], stored[0], *stored[2:]])
    assert [fault for fault in swapped.faults if "not in its place" in fault]
    repeated = opened([*stored, stored[-1]])
    assert repeated.logs == good.logs
    assert len(repeated.faults) == 1
    altered = replace(stored[0], sealed=stored[0].sealed[:-1] + b"\0")
    assert "does not open" in opened([altered, *stored[1:]]).faults[0]
    renumbered = replace(stored[0], round=9)
    assert "does not open" in opened([renumbered, *stored[1:]]).faults[0]


@pytest.mark.long
def test_a_job_without_logs_sends_none_though_its_sites_allow_them(
    harness: FederationHarness,
) -> None:
    job = harness.run("quiet", rounds=1, quorum=2)
    with pytest.raises(JobError, match="without the logs of its app"):
        list(harness.operator.fetch_app_logs(job.name, "site-a"))
    logs = list(harness.folder.glob("sites/site-[ab]/state/clients/logs/quiet.log"))
    assert len(logs) == 2
    assert not any("printed at" in path.read_text() for path in logs)


@pytest.mark.long
def test_on_a_development_machine_a_site_may_show_them(harness: FederationHarness) -> None:
    job = harness.run("shown", rounds=1, quorum=2)
    folder = harness.folder / "sites" / "site-c" / "state" / "clients" / "logs"
    text = (folder / f"{job.name}.log").read_text()
    assert f"{PREFIX}printed at site-c\n" in text
    assert f"{PREFIX}WARNING mine: logged at site-c (small/client_app.py:{WARNS})\n" in text
