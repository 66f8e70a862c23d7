"""What the checks of a job find in the sources of its app, which they do not run."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from fedlearn.api.validation import Report, examine
from fedlearn.cli.job import template
from fedlearn.errors import FedlearnError, JobError

APPS = '[strategy]\nname = "app"'


@pytest.fixture
def job(tmp_path: Path) -> Path:
    template.write(tmp_path / "x", "x")
    return tmp_path / "x"


def _set(job: Path, file: str, old: str, new: str) -> None:
    text = (job / file).read_text()
    assert old in text
    (job / file).write_text(text.replace(old, new, 1))


def _strategy(job: Path, text: str) -> None:
    _set(job, "job.toml", APPS, f"[strategy]\n{text}")


def _notes(job: Path) -> str:
    return "\n".join(examine(job / "job.toml").warnings)


# --- the code can be imported ---------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"def (:\n", r"app/x_app/other\.py:1: invalid syntax"),
        (b"x = 1\nreturn x\n", r"app/x_app/other\.py:2: 'return' outside function"),
        (b"\xff\xfe\n", r"app/x_app/other\.py"),
        (b"(" * 5000, r"app/x_app/other\.py"),
        (b"x = 1\0\n", r"app/x_app/other\.py"),
    ],
)
def test_a_file_that_does_not_compile_is_named_with_its_line(
    job: Path, source: bytes, words: str
) -> None:
    (job / "app/x_app/other.py").write_bytes(source)
    with pytest.raises(JobError, match=words) as caught:
        examine(job / "job.toml")
    assert "fab-exclude" in caught.value.hint


def test_all_files_that_do_not_compile_are_named_at_once(job: Path) -> None:
    for name in ("task", "client_app"):
        (job / f"app/x_app/{name}.py").write_text("def (:\n")
    with pytest.raises(JobError) as caught:
        examine(job / "job.toml")
    assert [line.split("/")[-1].split(":")[0] for line in str(caught.value).splitlines()] == [
        "client_app.py",
        "task.py",
    ]


def test_everything_that_is_wrong_is_reported_at_once(job: Path) -> None:
    _set(job, "job.toml", "local-epochs = 2", 'local-epoch = 2\nlearning-rate = "x"')
    path = job / "job.toml"
    path.write_text(path.read_text() + _PRIVACY.replace("epsilon = 8.0", "epsilon = 0.1"))
    _set(job, "policy.toml", 'claim = "software"', 'claim = "app"')
    (job / "app/x_app/other.py").write_text("def (:\n")
    with pytest.raises(JobError) as caught:
        examine(path)
    lines = str(caught.value).splitlines()
    for words in (
        "policy.toml: nothing pins",
        "epsilon",
        "config.local-epoch: the app x has no such setting; did you mean 'local-epochs'?",
        "config.learning-rate: must be like the app's default 0.5",
        "other.py:1: invalid syntax",
    ):
        assert len([line for line in lines if words in line]) == 1, (words, lines)


def test_a_file_outside_of_the_bundle_may_be_anything(job: Path) -> None:
    (job / "app/draft.py").write_text("def (:\n")
    assert examine(job / "job.toml").spec.name == "x"


def test_code_that_warns_is_accepted_in_silence(
    job: Path, recwarn: pytest.WarningsRecorder
) -> None:
    (job / "app/x_app/other.py").write_text('"\\d" is 1\n')
    examine(job / "job.toml")
    assert not [one for one in recwarn if issubclass(one.category, SyntaxWarning)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("from x_app import tusk", r"client_app\.py:1: imports 'tusk' from x_app, which has none"),
        ("from x_app.task import trian", r"client_app\.py:1: imports 'trian' from x_app\.task"),
        ("from . import tusk", r"client_app\.py:1: imports 'tusk' from x_app"),
        ("from .tusk import train", r"client_app\.py:1: imports x_app\.tusk, which is not in"),
        ("import x_app.tusk", r"client_app\.py:1: imports x_app\.tusk, which is not in the bundle"),
        ("from .. import task", r"client_app\.py:1: imports from above"),
    ],
)
def test_an_import_that_fails_wherever_it_runs_is_refused(job: Path, line: str, words: str) -> None:
    client = job / "app/x_app/client_app.py"
    # In front of `from __future__`, which has to be first: that one is left out.
    rest = client.read_text().replace("from __future__ import annotations\n", "")
    client.write_text(f"{line}\n{rest}")
    with pytest.raises(JobError, match=words):
        examine(job / "job.toml")
    # Nobody knows whether these run.
    for guarded in (f"if False:\n    {line}", f"try:\n    {line}\nexcept ImportError:\n    pass"):
        client.write_text(f"{guarded}\n{rest}")
        examine(job / "job.toml")


def test_names_that_are_made_when_the_module_runs_are_not_missed(job: Path) -> None:
    client = job / "app/x_app/client_app.py"
    rest = client.read_text().replace("from __future__ import annotations\n", "")
    client.write_text(f"from x_app.made import anything, __doc__\n{rest}")
    made = job / "app/x_app/made.py"
    for source in (
        "from x_app.task import *",
        "globals()['anything'] = 1",
        "def __getattr__(name):\n    return name",
        "def f():\n    global anything\n    anything = 1",
        "with open('x') as anything:\n    pass",
        "import anything",
        "import sys\nsys.modules[__name__].anything = 1",
        "match {}:\n    case {**anything}:\n        pass",
    ):
        made.write_text(source + "\n")
        examine(job / "job.toml")
    made.write_text("nothing = 1\n")
    with pytest.raises(JobError, match=r"imports 'anything' from x_app\.made"):
        examine(job / "job.toml")


def test_a_folder_of_data_is_a_package_like_any_other(job: Path) -> None:
    client = job / "app/x_app/client_app.py"
    rest = client.read_text().replace("from __future__ import annotations\n", "")
    client.write_text(f"from x_app import tables\nimport x_app.tables\n{rest}")
    with pytest.raises(JobError, match="imports 'tables' from x_app"):
        examine(job / "job.toml")
    (job / "app/x_app/tables").mkdir()
    (job / "app/x_app/tables/rows.json").write_text("[]")
    _set(job, "app/pyproject.toml", '"x_app/*.py"', '"x_app/*.py", "x_app/tables/*.json"')
    examine(job / "job.toml")


def test_no_code_of_the_app_runs(job: Path) -> None:
    (job / "app/x_app/__init__.py").write_text("raise SystemExit('it ran')\n")
    assert examine(job / "job.toml").spec.name == "x"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("x_app.client_app:app", "x_app.clients:app", "clientapp names the module x_app.clients"),
        ("x_app.client_app:app", "y_app.client_app:app", "names the module y_app.client_app"),
        (
            "x_app.server_app:app",
            "x_app.server_app:main_app",
            "serverapp names 'main_app' in x_app",
        ),
    ],
)
def test_what_the_project_names_is_in_the_bundle(job: Path, old: str, new: str, words: str) -> None:
    _set(job, "app/pyproject.toml", old, new)
    with pytest.raises(JobError, match=words):
        examine(job / "job.toml")


def test_a_package_that_is_not_here_may_be_at_the_sites(job: Path) -> None:
    _set(job, "app/x_app/task.py", "import csv\n", "import csv\nimport absent_here.sub\n")
    assert "x_app/task.py:6: absent_here, which is neither in the app nor installed" in _notes(job)


def test_a_bundle_is_checked_like_its_folder(job: Path) -> None:
    report = examine(job / "job.toml")
    (job / "app.fab").write_bytes(report.bundle)
    _set(job, "job.toml", 'app = "app"', 'app = "app.fab"')
    packed = examine(job / "job.toml")
    assert packed.bundle == report.bundle
    assert packed.to_json()["bundle_digest"] == report.to_json()["bundle_digest"]
    broken = job / "app.fab"
    with zipfile.ZipFile(broken, "a") as archive:
        archive.writestr("x_app/other.py", "def (:\n")
    with pytest.raises(JobError, match=r"app\.fab/x_app/other\.py:1: invalid syntax"):
        examine(job / "job.toml")


# --- settings have an effect ----------------------------------------------------------


def test_a_fresh_job_runs_the_strategy_of_its_app(job: Path) -> None:
    report = examine(job / "job.toml")
    assert "strategy app: the ServerApp makes it (FedAvg at x_app/server_app.py:19)" in report.found
    assert "replaces" not in "\n".join(report.warnings)
    _set(job, "app/x_app/server_app.py", "import FedAvg", "import FedAdam as FedAvg")
    assert "strategy app: the ServerApp makes it (FedAdam at x_app/server_app.py:19)" in (
        examine(job / "job.toml").found
    )


@pytest.mark.parametrize(
    ("strategy", "own", "replaced"),
    [
        ('name = "fedavg"', "FedAvg(min_available_nodes=2)", False),
        ('name = "fedavg"', "FedAdam()", True),
        ('name = "fedavg"', "FedAvg(fraction_train=0.5)", True),
        (
            'name = "fedavg"\noptions = { fraction_train = 0.5 }',
            "FedAvg(fraction_train=0.5)",
            False,
        ),
        ('name = "fedavg"', "strategies.FedYogi()", True),
    ],
)
def test_a_strategy_of_the_app_that_the_job_replaces_is_named(
    job: Path, strategy: str, own: str, replaced: bool
) -> None:
    server = job / "app/x_app/server_app.py"
    server.write_text(
        "import flwr.serverapp.strategy as strategies\n"
        "from flwr.serverapp.strategy import FedAdam, FedAvg\n"
        f"app = 1\n\ndef main(grid):\n    return {own.replace('strategies.', 'x.strategy.')}\n"
    )
    _strategy(job, strategy)
    notes = _notes(job)
    assert ('the job\'s strategy "fedavg" replaces Fed' in notes) is replaced
    assert ("(x_app/server_app.py:6)" in notes) is replaced


def test_an_option_that_the_client_has_to_use_is_looked_for(job: Path) -> None:
    _strategy(job, 'name = "fedprox"\noptions = { proximal_mu = 0.1 }')
    assert "proximal" not in _notes(job)
    _set(job, "app/x_app/client_app.py", '.get("proximal-mu", 0.0)', '["mu"]')
    expected = (
        "fedprox sends 'proximal-mu' to the clients, and the ClientApp does not seem to use it: "
        'proximal_mu has no effect until its training reads message.content["config"]'
    )
    assert expected in _notes(job)
    client = job / "app/x_app/client_app.py"
    text = client.read_text()
    client.write_text(text + "from fedlearn.training import Proximal\n")
    assert expected not in _notes(job)
    client.write_text(text + "from another import Proximal\n")
    assert expected in _notes(job)
    # The ServerApp is not the place.
    server = job / "app/x_app/server_app.py"
    server.write_text(server.read_text() + 'NAME = "proximal-mu"\n')
    assert expected in _notes(job)
    # The same for a strategy that the app starts.
    changed = '[strategy]\nname = "fedprox"\noptions = { proximal_mu = 0.1 }'
    _set(job, "job.toml", changed, APPS)
    assert "proximal" not in _notes(job)
    text = server.read_text().replace("FedAvg(", "FedProx(proximal_mu=0.1, ")
    server.write_text(text.replace("import FedAvg", "import FedProx"))
    assert f"x_app/server_app.py:19: {expected}" in _notes(job)


@pytest.mark.parametrize(
    ("strategy", "note"),
    [
        (
            'name = "qfedavg"\noptions = { client_learning_rate = 0.5 }',
            "qfedavg needs the metric 'train_loss' of each update (train_loss_key)",
        ),
        (
            'name = "fedavg"\noptions = { weighted_by_key = "rows" }',
            "fedavg needs the metric 'rows' of each update (weighted_by_key)",
        ),
        (
            'name = "scaffold"',
            "scaffold needs the metric 'fedlearn.scaffold.step-sum' of each update (name), and the "
            "ClientApp does not seem to report it (or uses fedlearn.training.Scaffold)",
        ),
        (
            'name = "feddyn"',
            'message.content["config"]["feddyn-alpha"] (or uses fedlearn.training.FedDyn)',
        ),
        ('name = "fedprox"', "fedprox without a proximal_mu above 0 is fedavg"),
        ('name = "fedavgm"', "fedavgm without server_momentum and server_learning_rate is fedavg"),
        ('name = "fedadam"\noptions = { eta_l = 0.1 }', "eta_l is not sent to the clients"),
    ],
)
def test_settings_without_an_effect_are_named(job: Path, strategy: str, note: str) -> None:
    assert note not in _notes(job)
    _strategy(job, strategy)
    assert note in _notes(job)


def test_settings_with_an_effect_are_not_named(job: Path) -> None:
    _strategy(
        job,
        'name = "qfedavg"\noptions = { client_learning_rate = 0.5, train_loss_key = "loss" }',
    )
    assert "needs the metric" not in _notes(job)


@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        ("min_available_nodes=2", "waits for min_available_nodes = 2 sites, and the job has"),
        ("min_available_nodes=1, min_train_nodes=3", "waits for min_train_nodes = 3 sites"),
        ("", "waits for min_available_nodes = 2 sites"),
        ("min_available_nodes=1, min_train_nodes=1, min_evaluate_nodes=1", ""),
        ("min_available_nodes=int('2'), min_train_nodes=1, min_evaluate_nodes=1", ""),
        ("**options", ""),
    ],
)
def test_a_strategy_that_waits_for_more_sites_than_the_quorum_is_named(
    job: Path, arguments: str, note: str
) -> None:
    _set(job, "job.toml", "quorum = 2", "quorum = 1")
    assert "waits for" not in _notes(job)
    line = "FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)"
    _set(job, "app/x_app/server_app.py", line, f"FedAvg({arguments})")
    assert (f"FedAvg {note}" in _notes(job)) if note else ("waits for" not in _notes(job))


def test_a_fraction_of_the_job_that_the_apps_strategy_does_not_use_is_named(job: Path) -> None:
    _set(job, "job.toml", "[evaluate]\n", "[evaluate]\nfraction = 0.5\n")
    assert "evaluate.fraction = 0.5 has no effect on a strategy that the app starts" in _notes(job)
    _strategy(job, 'name = "fedavg"')
    assert "evaluate.fraction" not in _notes(job)


def test_a_robust_strategy_of_the_app_is_held_to_its_bound(job: Path) -> None:
    server = job / "app/x_app/server_app.py"
    text = server.read_text().replace("FedAvg(", "Krum(num_malicious_nodes=1, ")
    server.write_text(text.replace("import FedAvg", "import Krum"))
    assert 'x_app/server_app.py:19: "krum" with num_malicious_nodes = 1 needs 5' in _notes(job)


# --- privacy --------------------------------------------------------------------------

_PRIVACY = (
    '[privacy]\nmechanism = "central-gaussian"\nclip = 1.0\nnoise_multiplier = 1.5\n'
    "epsilon = 8.0\ndelta = 1e-5\n"
)


def _examine_private(job: Path, more: str = "") -> Report:
    path = job / "job.toml"
    path.write_text(path.read_text() + _PRIVACY + more)
    return examine(path)


def test_privacy_states_what_will_not_be_shown(job: Path) -> None:
    assert "[privacy]" not in _notes(job)
    notes = "\n".join(_examine_private(job).warnings)
    assert "under [privacy] no loss or metric of a site leaves it" in notes
    assert "`evaluate_fn` of `strategy.start`" in notes
    _set(
        job, "app/x_app/server_app.py", "        grid=grid,", "        grid=grid, evaluate_fn=main,"
    )
    assert "shown are the metrics of the ServerApp's evaluate_fn" in _notes(job)


def test_exact_metrics_are_shown_and_named(job: Path) -> None:
    notes = "\n".join(_examine_private(job, "insecure_exact_metrics = true\n").warnings)
    assert "no loss or metric" not in notes
    assert "insecure_exact_metrics: the sites' losses and metrics leave them without" in notes


def test_a_unit_that_is_the_apps_own_part_is_named(job: Path) -> None:
    assert "the unit is" not in "\n".join(_examine_private(job).warnings)
    path = job / "job.toml"
    unit = 'unit = "user"\nusers = 10\nuser_column = "patient"\n'
    path.write_text(path.read_text() + unit)
    assert "the unit is the user: the app clips itself" in _notes(job)


@pytest.mark.parametrize("name", ["krum", "fedmedian"])
def test_privacy_refuses_a_rule_over_single_updates(job: Path, name: str) -> None:
    _strategy(job, f'name = "{name}"')
    with pytest.raises(FedlearnError, match=f'strategy.name: "{name}" needs the updates of single'):
        _examine_private(job)


def test_privacy_names_a_rule_over_single_updates_in_the_app(job: Path) -> None:
    server = job / "app/x_app/server_app.py"
    server.write_text(server.read_text().replace("FedAvg", "FedMedian"))
    notes = "\n".join(_examine_private(job).warnings)
    assert "x_app/server_app.py:19: fedmedian needs the updates of single sites, so" in notes
