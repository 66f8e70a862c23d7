"""A site remembers the newest version of each signed policy, and goes back to no older one."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from attestation.policy.model import AppraisalPolicy
from attestation.policy.parse import parse_policy
from edge.agent.policy_versions import PolicyMemory, SeenPolicy, rollback
from edge.main import main
from fedlearn.errors import ConfigError


def policy(version: int, name: str = "hospitals", accept: str = "tpm") -> AppraisalPolicy:
    text = f'version = {version}\nname = "{name}"\naccept = ["{accept}"]\n'
    return parse_policy(text.encode())


def test_the_newest_version_is_kept(tmp_path: Path) -> None:
    memory = PolicyMemory(tmp_path)
    assert memory.seen() == {}
    for version in (2, 5, 3):
        memory.remember(policy(version))
    memory.remember(policy(1, "other"))
    again = PolicyMemory(tmp_path).seen()
    assert {name: seen.version for name, seen in again.items()} == {"hospitals": 5, "other": 1}
    assert again["hospitals"].digest == policy(5).digest
    assert stat.S_IMODE((tmp_path / "policies.json").stat().st_mode) == 0o600


def test_an_older_version_and_another_content_of_the_same_are_a_rollback() -> None:
    newest = policy(5)
    seen = {"hospitals": SeenPolicy(version=5, digest=newest.digest)}
    assert rollback(newest, seen) == rollback(policy(6), seen) == ""
    assert rollback(policy(1, "other"), seen) == ""
    older = rollback(policy(4), seen)
    assert "version 4 of the policy 'hospitals' is older than 5" in older
    assert "fedlearn-edge policies --forget hospitals" in older
    assert "other content" in rollback(policy(5, accept="tdx"), seen)


def test_a_policy_is_forgotten_by_name(tmp_path: Path) -> None:
    memory = PolicyMemory(tmp_path)
    memory.remember(policy(5))
    assert memory.forget("hospitals").version == 5
    assert memory.seen() == {}
    memory.remember(policy(2))
    assert memory.seen()["hospitals"].version == 2
    with pytest.raises(ConfigError, match="has seen no signed policy 'nobody'"):
        memory.forget("nobody")


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"a": 1}', b'{"a": {"version": "x", "digest": ""}}', b'{"a": {"version": 1}}',
     b"\xff\xfe", b'{"a": {"version": 1, "digest": "zz"}}'],
)  # fmt: skip
def test_a_damaged_memory_is_not_an_empty_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "policies.json").write_bytes(content)
    memory = PolicyMemory(tmp_path)
    with pytest.raises(ConfigError, match=r"policies\.json: is damaged"):
        memory.seen()
    with pytest.raises(ConfigError, match="is damaged"):
        memory.remember(policy(9))
    assert (tmp_path / "policies.json").read_bytes() == content


def test_the_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.agent.policy_versions.MAX_POLICIES", 2)
    memory = PolicyMemory(tmp_path)
    memory.remember(policy(1, "a"))
    memory.remember(policy(1, "b"))
    memory.remember(policy(2, "b"))
    with pytest.raises(ConfigError, match="holds 2 policies already"):
        memory.remember(policy(1, "c"))


def test_the_command_shows_and_forgets(tmp_path: Path) -> None:
    config = tmp_path / "site.toml"
    config.write_text('state = "state"\n')
    PolicyMemory(tmp_path / "state").seen()
    (tmp_path / "state").mkdir()
    PolicyMemory(tmp_path / "state").remember(policy(5))

    def run(*words: str) -> Result:
        return CliRunner().invoke(main, ["policies", "--config", str(config), *words])

    assert f"hospitals  version 5  {policy(5).digest.hex()}" in run().stdout
    assert json.loads(run("--json").stdout)["policies"]["hospitals"]["version"] == 5
    done = run("--forget", "nobody")
    assert done.exit_code == 1
    assert "has seen no signed policy" in done.output
    assert "Traceback" not in done.output
    assert "any version of hospitals" in run("--forget", "hospitals").stdout
    assert json.loads(run("--json").stdout)["policies"] == {}
