"""``fedlearn-edge init``: a site's configuration from flags, and its enrollment. Real commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edge.config.site import SiteConfig
from edge.main import main
from edge.protocol.identity import SiteIdentity
from fedlearn.config.development_key import make_key
from fedlearn.identity.join import JoinToken
from tests.harness.listeners import DeploymentListeners

BUNDLE = "ab" * 32


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "medpar").mkdir()
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def write_token(listeners: DeploymentListeners, name: str = "site-c") -> str:
    """Invite a site and write its token, with the address of the listener of this test."""
    made = listeners.deployment.sites.invitations.create_token(name)
    token = JoinToken(
        address=listeners.gate, site=made.site, ca_pin=made.ca_pin, secret=made.secret
    )
    Path(f"{name}.token").write_text(token.encode())
    return f"{name}.token"


def test_a_configuration_is_written_from_flags(place: Path) -> None:
    coordinator = make_key(place / "coordinator").hex()
    done = run(
        *("init", "--config", "north/site.toml", "--data", "medpar=medpar", "--data", "b=/usr"),
        *("--accept-bundle", BUNDLE, "--other-bundles", "ask", "--approval", "manual"),
        *("--policy-key", BUNDLE, "--max-epsilon", "8", "--insecure-development"),
        *("--app-logs", "sealed"),
        *("--insecure-trust-sample-key", coordinator, "--json"),
    )
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    config = SiteConfig.load(Path("north/site.toml"))
    assert config.state == place / "north/state"
    assert config.data["medpar"].place == str(place / "medpar")
    assert config.data["b"].path == Path("/usr")
    accept = config.accept
    assert (accept.bundles, accept.other_bundles) == ((bytes.fromhex(BUNDLE),), "ask")
    assert (accept.approval, accept.policy_keys) == ("manual", (bytes.fromhex(BUNDLE),))
    assert accept.app_logs == "sealed"
    assert (config.privacy.required, config.privacy.max_epsilon) == (True, 8.0)
    assert config.trust.insecure_sample_keys == (bytes.fromhex(coordinator),)
    assert config.attester.kind == "insecure-sample"
    assert made["insecure_sample_key"] != coordinator
    assert made["site"] is None


def test_a_site_of_a_cluster(place: Path) -> None:
    image = f"registry.example/client@sha256:{BUNDLE}"
    kind = ("--launcher", "kubernetes", "--image", image, "--runtime-class", "kata-qemu-snp")
    done = run("init", "--claim", "medpar=claim-1", *kind)
    assert done.exit_code == 0, done.output
    config = SiteConfig.load(Path("site.toml"))
    assert config.data["medpar"].claim == "claim-1"
    assert config.kubernetes is not None
    assert (config.kubernetes.image, config.kubernetes.tee) == (image, "snp")


def test_a_token_enrolls_the_site_too(place: Path, listeners: DeploymentListeners) -> None:
    token = write_token(listeners)
    where = ("--config", "c/site.toml", "--token-file", token)
    done = run("init", *where, "--data", "medpar=medpar", "--insecure-development")
    assert done.exit_code == 0, done.output
    approve = "fedlearn site approve site-c --insecure-trust-sample-key "
    _, _, digest = done.output.partition(approve)
    assert len(digest.split()[0]) == 64
    assert SiteIdentity.load(place / "c/state").pending
    assert "next:  fedlearn-edge run --config c/site.toml" in done.output


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--data", "medpar=none"), "does not exist"),
        (("--data", "medpar"), "write NAME=PATH"),
        (("--data", "a=medpar", "--data", "a=medpar"), "names 'a' twice"),
        (("--data", "A B=medpar"), "data"),
        (("--accept-bundle", "abc"), "is not a SHA-256"),
        (("--launcher", "kubernetes"), "needs a table [kubernetes]"),
        (("--max-epsilon", "0"), "max_epsilon"),
        (("--token-file", "none"), "cannot be read"),
        (("--token-file", "typo"), "mistyped"),
        (("--insecure-trust-sample-key", "none"), "neither a SHA-256"),
    ],
)
def test_wrong_flags_write_nothing(place: Path, flags: tuple[str, ...], words: str) -> None:
    (place / "typo").write_text("fedlearn-join-AAAA")
    done = run("init", "--config", "c/site.toml", "--insecure-development", *flags)
    assert done.exit_code != 0
    assert words in done.output
    assert not (place / "c").exists()


def test_a_refused_token_leaves_nothing_behind(place: Path, listeners: DeploymentListeners) -> None:
    forged = JoinToken.fresh(
        address=listeners.gate, site="site-c", ca_pin=listeners.deployment.ca.key_digest
    )
    Path("forged").write_text(forged.encode())
    where = ("--config", "c/site.toml", "--token-file", "forged", "--insecure-development")
    done = run("init", *where)
    assert "not one of this coordinator" in done.output
    assert not (place / "c/site.toml").exists()
    assert not (place / "c/state").exists()
    good = write_token(listeners)
    done = run("init", "--config", "c/site.toml", "--token-file", good, "--insecure-development")
    assert done.exit_code == 0, done.output


def test_a_configuration_is_not_overwritten(place: Path, listeners: DeploymentListeners) -> None:
    Path("site.toml").write_text("mine")
    done = run("init")
    assert "exists; nothing was written" in done.output
    assert Path("site.toml").read_text() == "mine"
    token = write_token(listeners)
    assert run("init", "--config", "c.toml", "--token-file", token).exit_code == 0
    other = write_token(listeners, "site-d")
    done = run("init", "--config", "d.toml", "--token-file", other)
    assert "site site-c is enrolled here" in done.output
    assert not Path("d.toml").exists()


def test_a_missing_configuration_names_the_command_that_writes_one(place: Path) -> None:
    done = run("run", "--config", "none.toml")
    assert "`fedlearn-edge init` writes one" in done.output
