"""A first own job: written whole or not at all, right, and able to learn."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fedlearn.api.inspection.sources import read_sources
from fedlearn.cli import main
from fedlearn.cli.job import template
from fedlearn.errors import ConfigError
from fedlearn.identity.keyfile import make_key_pair, read_private_key
from fedlearn.job.owner_key import parse_owner_key, read_owner_key
from fedlearn.job.spec import JobFiles


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(item) for item in arguments])


def test_a_job_is_written_and_is_right(tmp_path: Path) -> None:
    done = _run("job", "init", tmp_path / "my-job")
    assert done.exit_code == 0
    assert "fedlearn job validate" in done.stdout
    checked = _run("job", "validate", tmp_path / "my-job/job.toml")
    assert checked.exit_code == 0, checked.stderr
    assert "can run" in checked.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["my-job"]


def test_an_empty_directory_may_be_used_and_a_name_given(tmp_path: Path) -> None:
    done = _run("job", "init", tmp_path, "--name", "heart-2", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["name"] == "heart-2"
    assert (tmp_path / "app/heart_2_app/client_app.py").is_file()
    report = json.loads(_run("job", "validate", tmp_path / "job.toml", "--json").stdout)
    assert report["ok"] is True
    assert report["name"] == "heart-2"


def test_the_directory_one_stands_in_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    inode = folder.stat().st_ino
    monkeypatch.chdir(folder)
    assert _run("job", "init", ".").exit_code == 0
    assert folder.stat().st_ino == inode
    assert sorted(path.name for path in folder.iterdir()) == [
        "app",
        "data",
        "job.toml",
        "policy.toml",
    ]
    assert _run("job", "validate").exit_code == 0


@pytest.mark.parametrize(
    "name", ["server", "edge", "fedlearn", "attestation", "9lives", "a-b", "a" * 63]
)
def test_no_job_writes_code_that_takes_our_place(tmp_path: Path, name: str) -> None:
    assert _run("job", "init", tmp_path / "x", "--name", name).exit_code == 0
    assert _run("job", "validate", tmp_path / "x/job.toml").exit_code == 0
    assert template.package_name(name).isidentifier()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path, tmp_path / "file"):
        before = sorted(tmp_path.rglob("*"))
        done = _run("job", "init", target, "--name", "x")
        assert done.exit_code == 1
        assert done.stderr.startswith("error: ")
        assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["my job"], "cannot name a job"),
        (["job", "--name", "Not A Name"], "cannot name a job"),
        (["a" * 64], "cannot name a job"),
    ],
)
def test_a_wrong_name_writes_nothing(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = _run("job", "init", tmp_path / arguments[0], *arguments[1:])
    assert done.exit_code == 1
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Path.write_text

    def full(self: Path, *arguments: Any, **keywords: Any) -> int:
        if self.name == "task.py":
            raise OSError(28, "No space left on device", str(self))
        return written(self, *arguments, **keywords)

    monkeypatch.setattr(Path, "write_text", full)
    for target in (tmp_path / "x", tmp_path):
        done = _run("job", "init", target, "--name", "x")
        assert done.exit_code == 1
        assert "no space left" in done.stderr
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError):
        template.write(tmp_path, "Not a name")


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    template.write(tmp_path / "j", "j")
    monkeypatch.syspath_prepend(tmp_path / "j/app")
    yield tmp_path / "j"
    for name in [name for name in sys.modules if name.split(".")[0] == "j_app"]:
        del sys.modules[name]


def test_the_app_learns(written: Path) -> None:
    pytest.importorskip("flwr")
    task = importlib.import_module("j_app.task")
    client = importlib.import_module("j_app.client_app")
    server = importlib.import_module("j_app.server_app")
    assert callable(client.app)
    assert callable(server.app)
    model = task.new_model()
    folders = [str(written / "data" / site) for site in template.SITES]
    before = [task.judge(model, folder)[1] for folder in folders]
    for _ in range(5):
        states = []
        for folder in folders:
            local = task.new_model()
            local.load_state_dict(model.state_dict())
            _, examples = task.train(local, folder, epochs=2, rate=0.5)
            assert examples == 400
            states.append(local.state_dict())
        mean = {key: sum(state[key] for state in states) / len(states) for key in states[0]}
        model.load_state_dict(mean)
    after = [task.judge(model, folder)[1] for folder in folders]
    assert min(after) > 0.7
    assert min(after) > max(before) + 0.1


def test_the_client_applies_the_proximal_term_that_a_strategy_sends(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_task_id", "_run_id", "_node_id"):  # as in Flower's own process
        monkeypatch.setattr(TaskIdentity, name, 1)
    task = importlib.import_module("j_app.task")
    client = importlib.import_module("j_app.client_app")
    context = Context(
        run_id=1,
        node_id=1,
        node_config={"data": str(written / "data/site-a")},
        state=RecordDict(),
        run_config={"local-epochs": 5, "learning-rate": 0.5},
    )

    def distance(**config: float) -> float:
        """How far the weights move from those of the first model, which are all 0."""
        arrays = ArrayRecord(task.new_model().state_dict())
        content = RecordDict({"arrays": arrays, "config": ConfigRecord(config)})
        reply = client.app(Message(content, 1, "train"), context)
        (sent,) = reply.content.array_records.values()
        return sum(float((array**2).sum()) for array in sent.to_numpy_ndarrays())

    assert distance() == distance(**{"proximal-mu": 0.0})
    assert distance(**{"proximal-mu": 1.0}) < 0.7 * distance()


def test_the_bundle_of_the_app_is_accepted(written: Path) -> None:
    bundle = pytest.importorskip("server.flower.application.bundle")
    first, second = bundle.build(written / "app"), bundle.build(written / "app")
    assert first == second


APPS, FEDAVG = '[strategy]\nname = "app"', '[strategy]\nname = "fedavg"'
LAUNCH = f'[[reference]]\nclaim = "launch"\nvalue = "{"ab" * 48}"\ntee = "snp"\n'
BREAKS = [
    ("job.toml", "rounds = 5", "ronds = 5", "job.toml:5: ronds: unknown key; did you mean"),
    (
        "job.toml",
        "local-epochs",
        "local-epoch",
        "config.local-epoch: the app x has no such setting",
    ),
    ("job.toml", "local-epochs = 2", 'local-epochs = "2"', "must be like the app's default 2"),
    ("job.toml", '"app" ', '"application" ', "the application does not exist"),
    ("job.toml", '"policy.toml"', '"polcy.toml"', "the policy does not exist"),
    ("policy.toml", "accept =", "acept =", "policy.toml:11: acept: unknown key"),
    ("policy.toml", 'name = "x"', "name = ", "policy.toml:5: is not TOML"),
    ("app/pyproject.toml", "serverapp", "serveapp", "needs project.name"),
    ("app/pyproject.toml", "x_app.server_app", "server.app", "a package of fedlearn"),
]


@pytest.mark.parametrize(("file", "old", "new", "words"), BREAKS)
def test_validate_names_what_is_broken(
    tmp_path: Path, file: str, old: str, new: str, words: str
) -> None:
    template.write(tmp_path / "x", "x")
    path = tmp_path / "x" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    done = _run("job", "validate", tmp_path / "x/job.toml")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert words in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["server.py", "edge", "fedlearn"])
def test_validate_refuses_code_that_takes_our_place(tmp_path: Path, name: str) -> None:
    template.write(tmp_path / "x", "x")
    (tmp_path / "x/app" / name).write_text("")
    done = _run("job", "validate", tmp_path / "x/job.toml")
    assert done.exit_code == 1
    assert "would replace a package of fedlearn" in done.stderr


def test_validate_notes_what_deserves_a_look(tmp_path: Path) -> None:
    template.write(tmp_path / "x", "x")
    path = tmp_path / "x/job.toml"
    path.write_text(path.read_text().replace('[data.site-b]\nset = "x"\n', ""))
    done = _run("job", "validate", path)
    assert done.exit_code == 0
    assert "no data named for site-b" in done.stdout
    assert "insecure_sample" in done.stdout
    assert "num-server-rounds" not in done.stdout


def test_validate_notes_that_the_app_states_other_rounds(tmp_path: Path) -> None:
    template.write(tmp_path / "x", "x")
    path = tmp_path / "x/job.toml"
    whole = path.read_text().replace("rounds = 5", "rounds = 50")
    path.write_text(whole)
    done = _run("job", "validate", path)
    assert done.exit_code == 0
    assert "the job has rounds = 50, and the app's num-server-rounds is 5" in done.stdout
    path.write_text(whole.replace("local-epochs = 2", "local-epochs = 2\nnum-server-rounds = 50"))
    assert "num-server-rounds" not in _run("job", "validate", path).stdout


@pytest.mark.parametrize(
    ("old", "new", "note"),
    [
        (
            "strategy = FedAvg(",
            "grid.send_and_receive([])\n    strategy = FedAvg(",
            ":19: drives the grid itself (send_and_receive)",
        ),
        ("app = ServerApp()", "app = ServerApp(server_fn=None)", ":11: uses the legacy API"),
        (
            "app = ServerApp()",
            "class Own(FedAvg):\n    pass\n\n\napp = ServerApp()",
            ":11: has a strategy of its own (Own)",
        ),
        (
            "app = ServerApp()",
            "import flwr\n\napp = 1\n\nclass Own(flwr.serverapp.strategy.FedAdam):\n    pass\n",
            ":15: has a strategy of its own (Own)",
        ),
    ],
)
def test_validate_notes_an_app_that_seems_to_need_single_updates(
    tmp_path: Path, old: str, new: str, note: str
) -> None:
    template.write(tmp_path / "x", "x")
    path, source = tmp_path / "x/job.toml", tmp_path / "x/app/x_app/server_app.py"
    assert "single sites" not in _run("job", "validate", path).stdout
    source.write_text(source.read_text().replace(old, new))
    whole = path.read_text()
    shown = _run("job", "validate", path).stdout
    assert f"x_app/server_app.py{note}" in shown
    assert 'set updates = "visible-to-app" in [aggregation]' in shown
    path.write_text(whole.replace('updates = "aggregated"', 'updates = "visible-to-app"'))
    assert "single sites" not in _run("job", "validate", path).stdout
    if "Own" in new:
        # Another strategy takes its place, which is reported.
        path.write_text(whole.replace(APPS, FEDAVG))
        shown = _run("job", "validate", path).stdout
        assert "single sites" not in shown
        assert 'the job\'s strategy "fedavg" replaces Own(Fed' in shown


def test_sources_are_those_of_the_bundle() -> None:
    sources = read_sources(
        {
            PurePosixPath("x_app/server_app.py"): b"def main(grid):\n    grid.push_messages([])\n",
            PurePosixPath("x_app/notes.txt"): b"grid.push_messages([])",
        },
        where="app.fab",
    )
    expected = ("x_app/server_app.py:2: drives the grid itself (push_messages)",)
    assert sources.single_updates(own_strategy=False) == expected


def test_validate_states_what_the_app_receives(tmp_path: Path) -> None:
    template.write(tmp_path / "x", "x")
    path = tmp_path / "x/job.toml"
    whole = path.read_text()
    assert (
        "updates aggregated: the app's ServerApp receives the aggregate"
        in _run("job", "validate", path).stdout
    )
    path.write_text(whole.replace('updates = "aggregated"', 'updates = "visible-to-app"'))
    done = _run("job", "validate", path)
    assert "the app's ServerApp receives the update of each site" in done.stdout
    assert "accept.visible_updates = true" in done.stdout
    template.write(tmp_path / "y", "y", sites=("a", "b", "c"))
    path, masked = tmp_path / "y/job.toml", 'updates = "aggregated"\nsecure = "secagg+"'
    path.write_text(path.read_text().replace('updates = "aggregated"', masked))
    assert "updates masked (secagg+): the coordinator" in _run("job", "validate", path).stdout


def test_validate_states_that_sample_evidence_would_be_refused(tmp_path: Path) -> None:
    template.write(tmp_path / "x", "x")
    policy = tmp_path / "x/policy.toml"
    whole = policy.read_text()
    assert whole.count("insecure_sample = true") == 2
    for changed, who, alone in (
        (whole.replace("insecure_sample = true", "", 1), "of clients", True),
        (whole[::-1].replace("eurt = elpmas_erucesni", "", 1)[::-1], "of the coordinator", True),
        (
            whole.replace("insecure_sample = true", "", 1)
            .replace('accept = ["sample"]', 'accept = ["sample", "snp"]', 1)
            .replace("[require]", LAUNCH + "[require]"),
            "of clients",
            False,
        ),
    ):
        policy.write_text(changed)
        done = _run("job", "validate", tmp_path / "x/job.toml", "--json")
        assert done.exit_code == 0, done.output
        noted = [n for n in json.loads(done.stdout)["warnings"] if "without insecure_sample" in n]
        assert len(noted) == 1, done.stdout
        assert f"accepts sample evidence {who} without insecure_sample = true" in noted[0]
        assert ("nobody will be admitted" in noted[0]) is alone
    policy.write_text(whole)
    assert "without insecure_sample" not in _run("job", "validate", tmp_path / "x/job.toml").stdout


@pytest.mark.parametrize("who", ["reference", "coordinator.reference"])
def test_validate_refuses_a_policy_that_pins_no_launch(tmp_path: Path, who: str) -> None:
    template.write(tmp_path / "x", "x")
    policy = tmp_path / "x/policy.toml"
    whole = policy.read_text()
    pinned = f'[[{who}]]\nclaim = "software"'
    assert pinned in whole
    for changed, both in (
        (whole.replace(pinned, pinned.replace("software", "app")), False),
        (whole.replace('accept = ["sample"]', 'accept = ["snp"]'), True),
    ):
        policy.write_text(changed)
        done = _run("job", "validate", tmp_path / "x/job.toml")
        assert done.exit_code == 1
        assert done.stdout == ""
        assert "policy.toml: " in done.stderr
        assert "nothing pins the" in done.stderr
        assert ("coordinator: nothing" in done.stderr) is (both or who != "reference")


def _with_privacy(folder: Path, **changes: str) -> Result:
    template.write(folder / "x", "x")
    path = folder / "x/job.toml"
    text = path.read_text()
    start = text.index("# [privacy]")
    table = text[start:].replace("# ", "")
    for old, new in changes.items():
        table = table.replace(f"{old} = 8.0", f"{old} = {new}")
    path.write_text(text[:start] + table)
    return _run("job", "validate", path)


def test_the_privacy_table_that_is_offered_pays_for_the_job(tmp_path: Path) -> None:
    done = _with_privacy(tmp_path)
    assert done.exit_code == 0, done.stderr
    for words in ("epsilon", "delta", "unit", "sampling", "accountant"):
        assert words in done.stdout


def test_a_job_that_its_budget_does_not_pay_for_is_refused(tmp_path: Path) -> None:
    done = _with_privacy(tmp_path, epsilon="1.0")
    assert done.exit_code == 1
    assert "exceed the privacy budget" in done.stderr
    assert "set noise_multiplier" in done.stderr


def test_sites_and_a_new_owners_key_need_no_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--sites", "north,south,east", "--new-owner-key", "keys/owner.pem"]
    done = CliRunner().invoke(main, ["job", "init", "j", *flags, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["files"][-2:] == ["keys/owner.pem", "keys/owner.pub.pem"]
    assert Path("keys/owner.pem").stat().st_mode & 0o777 == 0o600
    spec = JobFiles.load(tmp_path / "j/job.toml").spec
    assert spec.sites == tuple(spec.data) == ("north", "south", "east")
    assert spec.quorum == 3
    assert spec.owner_key.startswith("x25519:")
    assert Path("j/data/east/data.csv").is_file()
    again = CliRunner().invoke(main, ["job", "init", "k", "--owner-key", "keys/owner.pub.pem"])
    assert again.exit_code == 0, again.output
    assert JobFiles.load(tmp_path / "k/job.toml").spec.owner_key == spec.owner_key


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--sites", "north,"), "is not a name of a site"),
        (("--sites", "north,north"), "names a site twice"),
        (("--owner-key", "none.pem"), "does not exist"),
        (("--owner-key", "private.pem"), "holds a private key"),
        (("--new-owner-key", "private.pem"), "exists"),
        (("--owner-key", "private.pem", "--new-owner-key", "x.pem"), "exclude each other"),
    ],
)
def test_wrong_sites_and_keys_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make_key_pair(Path("private.pem"))
    before = Path("private.pem").read_bytes()
    done = CliRunner().invoke(main, ["job", "init", "j", *flags])
    assert done.exit_code != 0
    assert words in done.output
    assert not Path("j").exists()
    assert Path("private.pem").read_bytes() == before


def test_a_key_pair_of_an_owner_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(main, ["model", "keygen", "--passphrase"], input="one\none\n")
    assert made.exit_code == 0, made.output
    key = read_private_key(Path("owner.pem"), ask=lambda: "one")
    raw = key.public_key().public_bytes_raw()
    assert parse_owner_key(read_owner_key("owner.pub.pem", "job", tmp_path)) == raw
    again = CliRunner().invoke(main, ["model", "keygen"])
    assert "owner.pem: exists" in again.output
    Path("owner.pem").rename("moved.pem")
    again = CliRunner().invoke(main, ["model", "keygen"])
    assert "owner.pub.pem: exists" in again.output
    with pytest.raises(ConfigError, match="the private one is needed") as caught:
        read_private_key(Path("owner.pub.pem"))
    assert "owner.pub.pem" not in caught.value.hint
    assert "genpkey" not in caught.value.hint
