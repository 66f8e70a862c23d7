"""``fedlearn demo``: what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from attestation.attesters.software_tpm import SoftwareTpm
from attestation.config import dumps
from attestation.evidence import Tee
from fedlearn.cli import main
from fedlearn.cli.demo.stage import Options
from fedlearn.errors import ConfigError
from fedlearn.local.federation import Federation, free_port, program
from fedlearn.local.machines import Machine, choose_tee, make_machine
from fedlearn.local.policy import policy_text


def _demo(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["demo", *arguments])


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (("--data", "medpr"), "'medpr' is not one of"),
        (("--sites", "1"), "1 is not in the range"),
        (("--sites", "many"), "'many' is not a valid integer"),
        (("--rounds", "0"), "0 is not in the range"),
        (("--tee", "sgx"), "'sgx' is not one of"),
        (("--seed", "-1"), "-1 is not in the range"),
        (("--sites",), "requires an argument"),
        (("--fast",), "no such option"),
    ],
)
def test_a_wrong_flag_is_named(arguments: tuple[str, ...], reported: str) -> None:
    result = _demo(*arguments)
    assert result.exit_code != 0
    assert reported.lower() in result.output.lower()
    assert "Traceback" not in result.output


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "report"
    file.write_text("mine")
    result = _demo("--output", str(file))
    assert result.exit_code != 0
    assert "is a file" in result.output
    assert file.read_text() == "mine"


def test_a_missing_package_is_found_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    output = tmp_path / "out"
    result = _demo("--output", str(output))
    assert result.exit_code != 0
    assert "pip install 'fedlearn[demo]'" in result.output
    assert not output.exists()


def test_a_missing_data_set_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedlearn.data.sources import fashion

    monkeypatch.setattr(fashion, "FOLDER", tmp_path / "nowhere")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    output = tmp_path / "out"
    result = _demo("--data", "fashion", "--tee", "sample", "--json", "--output", str(output))
    assert result.exit_code == 1
    last = json.loads(result.output.strip().splitlines()[-1])
    assert "apt-get install dataset-fashion-mnist" in last["error"]["hint"]
    assert not output.exists()


def test_the_same_command_is_reported_again() -> None:
    text = Options(data="digits", sites=5, seed=9, tee="sample").command(3)
    assert text == "fedlearn demo --data digits --sites 5 --rounds 3 --tee sample --seed 9"


# --- machines -------------------------------------------------------------------------


def test_what_is_insecure_states_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tee, warning = choose_tee("sample")
    assert tee is Tee.SAMPLE
    assert "accepts it by name" in warning
    monkeypatch.setattr(SoftwareTpm, "available", lambda: "swtpm not found")
    assert choose_tee("auto")[0] is Tee.SAMPLE
    with pytest.raises(ConfigError, match="swtpm not found"):
        choose_tee("tpm")


def test_a_development_machine_is_private_and_known(tmp_path: Path) -> None:
    machine = make_machine(Tee.SAMPLE, tmp_path / "machine")
    assert machine.table() == {"kind": "insecure-sample"}
    assert (tmp_path / "machine").stat().st_mode & 0o077 == 0
    keys = [p for p in (tmp_path / "machine").iterdir() if not p.name.endswith(".pub.pem")]
    assert keys
    assert all(key.stat().st_mode & 0o077 == 0 for key in keys)
    assert make_machine(Tee.SAMPLE, tmp_path / "other").anchor != machine.anchor


@pytest.mark.swtpm
def test_a_software_tpm_keeps_its_key(tmp_path: Path) -> None:
    if SoftwareTpm.available():
        pytest.skip(SoftwareTpm.available())
    first = make_machine(Tee.TPM, tmp_path / "a")
    assert make_machine(Tee.TPM, tmp_path / "a").anchor == first.anchor
    assert make_machine(Tee.TPM, tmp_path / "b").anchor != first.anchor


# --- what the federation writes -------------------------------------------------------


def _machine(name: str, folder: Path, tee: Tee) -> Machine:
    digest = name.encode().ljust(32, b"\0")
    return Machine(tee=tee, state=folder / name, anchor=digest, hardware_id=digest)


@pytest.mark.parametrize("tee", [Tee.TPM, Tee.SAMPLE])
def test_the_policy_and_the_configurations_can_be_read(tmp_path: Path, tee: Tee) -> None:
    from attestation.policy.parse import parse_policy
    from fedlearn.local.children import Children
    from server.config import ServerConfig

    names = ["site-1", "site-2"]
    with Children(tmp_path / "logs") as children:
        federation = Federation(tmp_path, children, tee=tee)
        federation.machines = {
            name: _machine(name, tmp_path, tee) for name in ["coordinator", *names]
        }
        text = policy_text(
            federation, name="medpar", bundle=b"\x07" * 32, app="medpar", sites=names
        )
        table = federation.server_table()
    policy = parse_policy(text.encode())
    assert policy.accept == (tee,)
    assert policy.coordinator is not None
    assert policy.coordinator.accept == (tee,)

    (tmp_path / "coordinator").mkdir()
    path = tmp_path / "coordinator" / "server.toml"
    path.write_text(dumps(table))
    loaded = ServerConfig.load(path)
    assert loaded.state == tmp_path / "coordinator" / "state"
    trusted = loaded.trust.tpm_aks if tee is Tee.TPM else loaded.trust.insecure_sample_keys
    # A site with a TPM proves its attestation key; only a development key is pinned.
    assert len(trusted) == (0 if tee is Tee.TPM else 2)


def test_our_commands_are_found() -> None:
    assert os.access(program("fedlearn"), os.X_OK)
    with pytest.raises(ConfigError, match="fedlearn-nothing"):
        program("fedlearn-nothing")
    assert 1024 <= free_port() < 65536
