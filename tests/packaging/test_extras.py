"""Extras: each part installs what it needs, and a command without its extra names it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from fedlearn.errors import ConfigError
from fedlearn.extras import EXTRAS, load, missing_extra, require

ROOT = Path(__file__).resolve().parents[2]
NOT_A_PART = {"all", "dev", "docs", "examples"}
TRACKERS = {"mlflow", "tensorboard", "wandb", "trackio"}
CLUSTERS = {"ray"}
NOT_IN_DEV = {"trackio"}  # it has an environment of its own, see tests/fedlearn/tracking
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Started by every Python below: what is named in BLOCKED is as if it were not installed.
BLOCKER = """\
import importlib.metadata, os, sys

blocked = set(filter(None, os.environ.get("BLOCKED", "").split(",")))

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in blocked:
            return self.finder.find_spec(name, path, target)

found = importlib.metadata.Distribution.from_name.__func__

def from_name(cls, name):
    if name in blocked:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(cls, name)

importlib.metadata.Distribution.from_name = classmethod(from_name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""

COMMANDS = {
    "fedlearn": "fedlearn.cli",
    "fedlearn-server": "server.main",
    "fedlearn-edge": "edge.main",
}


@pytest.fixture(scope="module")
def blocker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose ``sitecustomize`` hides what BLOCKED names."""
    folder = tmp_path_factory.mktemp("blocker")
    (folder / "sitecustomize.py").write_text(BLOCKER)
    return folder


def _run(
    blocker: Path, blocked: str, command: str, *words: str, cwd: Path
) -> subprocess.CompletedProcess[str]:
    code = f"from {COMMANDS[command]} import main; main(prog_name={command!r})"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        check=False,
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": f"{blocker}:{ROOT}", "BLOCKED": blocked},
        timeout=120,
    )


def _of(extra: str) -> Iterator[Requirement]:
    for line in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(line)
        if requirement.name != "fedlearn":
            yield requirement


def test_the_table_of_extras_is_that_of_the_project() -> None:
    written = {
        extra: {requirement.name for requirement in _of(extra)}
        for extra in PROJECT["optional-dependencies"]
        if extra not in NOT_A_PART
    }
    assert {extra: names for extra, names in written.items() if names} == {
        extra: set(modules.values()) for extra, modules in EXTRAS.items()
    }
    for extra in EXTRAS.keys() - NOT_IN_DEV:
        for module, distribution in EXTRAS[extra].items():
            assert distribution in importlib.metadata.packages_distributions()[module]


def test_all_holds_every_extra_but_trackers_and_clusters() -> None:
    (all_of_it,) = (Requirement(line) for line in PROJECT["optional-dependencies"]["all"])
    assert (
        all_of_it.extras
        == PROJECT["optional-dependencies"].keys() - NOT_A_PART - TRACKERS - CLUSTERS
    )


def test_the_core_has_nothing_of_an_extra() -> None:
    core = {Requirement(line).name for line in PROJECT["dependencies"]}
    optional = {name for modules in EXTRAS.values() for name in modules.values()}
    assert not core & optional


def test_a_module_of_no_extra_is_no_missing_extra() -> None:
    assert missing_extra(ModuleNotFoundError("no", name="nothing.of.ours")) is None
    assert missing_extra(ModuleNotFoundError("no")) is None
    with pytest.raises(ModuleNotFoundError):
        load("nothing_of_ours", needed_for="this test")


def test_a_missing_package_is_named_before_work_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    require("server", needed_for="this test")
    monkeypatch.setitem(sys.modules, "httptools", None)
    with pytest.raises(ConfigError, match="this test needs the package 'httptools'") as refused:
        require("server", needed_for="this test")
    assert refused.value.hint == "pip install 'fedlearn[server]'"


WALK = """\
import importlib, json, pkgutil
found = {}
for package in ("attestation", "edge", "fedlearn", "server"):
    for module in pkgutil.walk_packages([package], package + "."):
        if ".demo.apps." in module.name:
            continue  # imported by their own short names, where a job runs
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            found[module.name] = error.name.partition(".")[0]
print(json.dumps(found))
"""


def test_few_modules_need_an_extra(blocker: Path) -> None:
    """Every module of ours is imported where no extra is installed; Flower brings urllib3."""
    modules = {module for modules in EXTRAS.values() for module in modules}
    blocked = ",".join(modules - {"urllib3"})
    done = subprocess.run(
        [sys.executable, "-c", WALK],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{blocker}:{ROOT}", "BLOCKED": blocked},
    )
    assert done.returncode == 0, done.stderr
    where = {
        "lxml": ("attestation.endorsements.xmlsig",),
        "torch": (
            "fedlearn.audit.",
            "fedlearn.training",
            "fedlearn.update.torch",
            "fedlearn.app.state_dict",
        ),
        "uvicorn": ("server.rpc.", "server.coordinator", "server.service"),
        "httptools": ("server.rpc.", "server.coordinator", "server.service"),
    }
    needs = json.loads(done.stdout)
    assert {
        module: missing
        for module, missing in needs.items()
        if not module.startswith(where[missing])
    } == {}
    assert {"lxml", "torch", "uvicorn"} <= set(needs.values())


def test_help_needs_no_extra(blocker: Path, tmp_path: Path) -> None:
    blocked = ",".join(module for modules in EXTRAS.values() for module in modules)
    for command in COMMANDS:
        done = _run(blocker, blocked, command, "--help", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    nouns = re.findall(
        r"^  (\w+)  ", _run(blocker, "", "fedlearn", "--help", cwd=tmp_path).stdout, re.M
    )
    assert {"demo", "job", "doctor"} <= set(nouns)
    for noun in nouns:
        done = _run(blocker, blocked, "fedlearn", noun, "--help", cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_a_job_is_written_and_checked_without_an_extra(blocker: Path, tmp_path: Path) -> None:
    # Flower, which bundles the app, brings urllib3.
    modules = {module for modules in EXTRAS.values() for module in modules}
    blocked = ",".join(modules - {"urllib3"})
    for words in (("job", "init", "mine"), ("job", "validate", "mine/job.toml")):
        done = _run(blocker, blocked, "fedlearn", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("blocked", "needs", "extra"),
    [
        ("uvicorn", "a coordinator on this machine needs the package 'uvicorn'", "server"),
        ("torch", "the app depends on 'torch', which is not installed", "torch"),
    ],
)
def test_a_trial_names_the_extra_that_it_needs(
    blocker: Path, tmp_path: Path, blocked: str, needs: str, extra: str
) -> None:
    assert _run(blocker, "", "fedlearn", "job", "init", "mine", cwd=tmp_path).returncode == 0
    done = _run(blocker, blocked, "fedlearn", "job", "try", "mine/job.toml", cwd=tmp_path)
    assert done.returncode == 1
    assert needs in done.stderr
    assert done.stderr.splitlines()[-1] == f"hint: pip install 'fedlearn[{extra}]'"


def test_a_demo_names_the_extra_that_it_needs(blocker: Path, tmp_path: Path) -> None:
    done = _run(blocker, "matplotlib", "fedlearn", "demo", "--json", cwd=tmp_path)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"] == {
        "code": "config",
        "message": "the demo needs the package 'matplotlib', which is not installed",
        "hint": "pip install 'fedlearn[demo]'",
    }
    done = _run(blocker, "torch", "fedlearn", "demo", "--data", "digits", cwd=tmp_path)
    assert done.stderr.splitlines() == [
        "error: the demo on digits needs the package 'torch', which is not installed",
        "hint: pip install 'fedlearn[torch]'",
    ]


def test_a_coordinator_names_the_extra_that_it_needs(blocker: Path, tmp_path: Path) -> None:
    made = _run(
        blocker, "uvicorn", "fedlearn-server", "init", "--insecure-development", cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    done = _run(blocker, "uvicorn", "fedlearn-server", "run", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: this command needs the package 'uvicorn', which is not installed",
        "hint: pip install 'fedlearn[server]'",
    ]
    done = _run(
        blocker, "uvicorn", "fedlearn", "doctor", "--server", "server.toml", "--json", cwd=tmp_path
    )
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["server extra"]["level"] == "fail"
    assert checks["server extra"]["mend"] == "pip install 'fedlearn[server]'"
    assert checks["uvicorn"]["found"] == "not installed; pip install 'fedlearn[server]' installs it"


def test_an_agent_for_a_cluster_names_the_extra_that_it_needs(
    blocker: Path, tmp_path: Path
) -> None:
    (tmp_path / "kubeconfig").write_text("apiVersion: v1\nkind: Config\n")
    (tmp_path / "site.toml").write_text(
        'state = "state"\n[launcher]\nkind = "kubernetes"\n[kubernetes]\nnamespace = "north"\n'
        'runtime_class = "kata-qemu-tdx"\n'
        'kubeconfig = "kubeconfig"\n'
        f'image = "registry.example/fedlearn/client@sha256:{"ab" * 32}"\n'
    )
    words = ("doctor", "--edge", "site.toml", "--cluster", "--json")
    done = _run(blocker, "kubernetes", "fedlearn", *words, cwd=tmp_path)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["cluster"]["found"] == (
        "kubernetes.kubeconfig needs the package 'kubernetes', which is not installed"
    ), done.stdout
    assert checks["cluster"]["mend"] == "pip install 'fedlearn[kubernetes]'"


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_core_install_is_small_and_states_what_it_lacks(wheel: Path, tmp_path: Path) -> None:
    """A real environment with what pip takes for `fedlearn`, and nothing else."""
    pip = [sys.executable, "-m", "pip"]
    wheels = tmp_path / "wheels"
    constraint = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run(
        [*pip, "download", "--quiet", "--dest", str(wheels), *constraint, str(wheel)], check=True
    )
    total = sum(path.stat().st_size for path in wheels.iterdir())
    assert total < 150_000_000
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    inside = [*pip, "--python", str(tmp_path / "venv/bin/python")]
    subprocess.run(
        [*inside, "install", "--quiet", "--no-index", "--find-links", str(wheels), str(wheel)],
        check=True,
    )
    # Flower brings it for servers of its own.
    subprocess.run([*inside, "uninstall", "--quiet", "--yes", "uvicorn"], check=True)

    def run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [tmp_path / "venv/bin" / name, *words],
            check=False,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            timeout=120,
        )

    assert run("fedlearn", "job", "init", "mine").returncode == 0
    assert run("fedlearn", "job", "validate", "mine/job.toml").returncode == 0
    assert run("fedlearn-server", "init", "--insecure-development").returncode == 0
    for words, extra in (
        (("fedlearn-server", "run"), "server"),
        (("fedlearn", "job", "try", "mine/job.toml"), "torch"),
        (("fedlearn", "demo"), "demo"),
    ):
        done = run(*words)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == f"hint: pip install 'fedlearn[{extra}]'"
    checks = {
        check["name"]: check
        for check in json.loads(run("fedlearn", "doctor", "--json").stdout)["checks"]
    }
    assert checks["installation"]["level"] == "ok"
    assert "as they were installed" in checks["installation"]["found"]
