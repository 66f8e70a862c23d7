"""An operator's calls and the ``fedlearn site`` commands, against real listeners."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from attestation.policy.parse import parse_policy
from attestation.policy.sign import operator_key_digest, sign_policy
from edge.protocol.identity import SiteIdentity
from fedlearn.cli import main
from fedlearn.config.development_key import make_key
from fedlearn.errors import AdmissionDenied, ConfigError, JobError, TransportError
from fedlearn.identity.join import JoinToken
from fedlearn.identity.login import OperatorLogin
from fedlearn.job.spec import MAX_JOB_TOML_BYTES
from fedlearn.local.federation import program
from fedlearn.wire.failure import Unreachable
from fedlearn.wire.operator import OperatorClient
from tests.harness.deployment import key_pem
from tests.harness.listeners import DeploymentListeners


@pytest.fixture
def login(listeners: DeploymentListeners, tmp_path: Path) -> Path:
    """An operator's login for ``listeners``."""
    chain, key = listeners.deployment.operator()
    OperatorLogin(
        address=listeners.control,
        ca=listeners.deployment.ca.certificate_pem,
        chain=chain,
        key=key_pem(key),
    ).save(tmp_path / "operator")
    return tmp_path / "operator"


@pytest.fixture
def operator(login: Path) -> Iterator[OperatorClient]:
    loaded = OperatorLogin.load(login)
    with OperatorClient(
        address=loaded.address, ca=loaded.ca, chain=loaded.chain, key=loaded.key
    ) as client:
        yield client


def test_a_token_in_a_file_is_for_its_owner_and_names_a_development_key(
    listeners: DeploymentListeners, login: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_operator = ("--operator", str(login))
    digest = make_key(tmp_path / "site").hex()
    public = str(tmp_path / "site" / "insecure-development.pub.pem")
    out = tmp_path / "site-c.token"
    trust = ("--insecure-trust-sample-key", public)
    status, shown, _ = run(
        capsys, "site", "token", "site-c", "--out", str(out), *trust, *as_operator
    )
    assert (status, out.stat().st_mode & 0o777) == (0, 0o600)
    assert JoinToken.parse(out.read_text()).site == "site-c"
    assert out.read_text().strip() not in shown
    _, shown, _ = run(capsys, "site", "show", "site-c", *as_operator)
    assert f"INSECURE     sample evidence of the development key {digest}" in shown
    _, shown, _ = run(capsys, "site", "show", "site-c", "--json", *as_operator)
    assert json.loads(shown)["insecure_sample_key"] == digest


def test_a_token_in_a_file_that_others_may_read_is_warned_of(login: Path, tmp_path: Path) -> None:
    """As in `fedlearn site token NAME > FILE` with a usual umask."""
    warned = []
    for mode in (0o644, 0o600):
        with (tmp_path / f"{mode:o}").open("wb") as file:
            os.fchmod(file.fileno(), mode)
            done = subprocess.run(
                [program("fedlearn"), "site", "token", "site-c", "--operator", login],
                stdout=file,
                stderr=subprocess.PIPE,
                check=True,
            )
        warned.append(b"other users of this machine may read" in done.stderr)
    assert warned == [True, False]


def test_jobs_are_submitted_seen_followed_and_stopped(
    listeners: DeploymentListeners, operator: OperatorClient
) -> None:
    state = operator.submit_job(job_toml="name", bundle=b"app", policy_toml="policy")
    assert (state.name, state.status, state.sites) == ("alpha", "pending", ("site-a",))
    assert listeners.coordinator.calls == [("submit", ("alice", "name", 3, "policy"))]
    assert [job.name for job in operator.list_jobs()] == ["alpha"]
    assert operator.get_job("alpha").round == 1
    events = list(operator.follow_job("alpha", after=1, past_only=True))
    assert [event.sequence for event in events] == [2, 3]
    assert operator.cancel_job("alpha").status == "cancelled"
    assert operator.resume_job("alpha").status == "running"
    operator.replace_policy("alpha", "version = 1")
    assert listeners.coordinator.calls[-1] == ("policy", ("alice", "alpha", "version = 1"))


def test_errors_come_back_as_they_were_raised(operator: OperatorClient) -> None:
    with pytest.raises(ConfigError, match=r"job.toml:3: rounds: is not a number") as caught:
        operator.submit_job(job_toml="broken", bundle=b"", policy_toml="")
    assert caught.value.hint == "write 5"
    with pytest.raises(JobError, match="no job nope"):
        operator.get_job("nope")
    with pytest.raises(TransportError, match="internal error") as crashed:
        operator.submit_job(job_toml="crash", bundle=b"", policy_toml="")
    assert "secret" not in str(crashed.value)
    with pytest.raises(ConfigError, match="at most"):
        operator.submit_job(job_toml="", bundle=bytes(65 * 1024 * 1024), policy_toml="")
    with pytest.raises(ConfigError, match=r"job.toml: at most 2097152 bytes"):
        operator.submit_job(job_toml="#" * (MAX_JOB_TOML_BYTES + 1), bundle=b"", policy_toml="")
    with pytest.raises(ConfigError, match="no live client"):
        operator.revoke_client("alpha", "site-a", "why", once=True)


def test_a_client_is_revoked_once_and_comes_back(
    listeners: DeploymentListeners, operator: OperatorClient
) -> None:
    listeners.deployment.admit(listeners.deployment.client())
    operator.revoke_client("alpha", "site-a", "lost trust", once=True)
    assert listeners.deployment.last("revocation")["reason"] == "lost trust (operator alice)"
    assert listeners.deployment.nodes.alive == {}
    assert listeners.deployment.admit(listeners.deployment.client())


def test_a_site_is_kept_out_until_it_is_readmitted(
    listeners: DeploymentListeners, operator: OperatorClient
) -> None:
    deployment = listeners.deployment
    deployment.admit(deployment.client())
    operator.revoke_client("alpha", "site-a", "seen elsewhere")
    assert deployment.last("revocation")["reason"] == "seen elsewhere (operator alice)"
    assert deployment.nodes.alive == {}
    with pytest.raises(AdmissionDenied, match="excluded from job alpha by operator alice"):
        deployment.admit(deployment.client())
    (shown,) = operator.get_job("alpha").exclusions
    assert (shown.site, shown.client, shown.until) == ("site-a", "", None)
    assert (shown.reason, shown.operator) == ("seen elsewhere", "alice")
    operator.readmit_client("alpha", "site-a")
    assert deployment.last("exclusion")["change"] == "lifted"
    assert operator.get_job("alpha").exclusions == ()
    assert deployment.admit(deployment.client())


def test_a_revocation_that_cannot_be_is_refused(
    listeners: DeploymentListeners, operator: OperatorClient
) -> None:
    with pytest.raises(JobError, match="no job nope"):
        operator.revoke_client("nope", "site-a", "why")
    with pytest.raises(ConfigError, match="site-z does not take part in job alpha"):
        operator.revoke_client("alpha", "site-z", "why")
    with pytest.raises(ConfigError, match="client"):
        operator.revoke_client("alpha", "site-a", "why", client="Not OK")
    with pytest.raises(ConfigError, match="past"):
        operator.revoke_client("alpha", "site-a", "why", until=datetime(2001, 1, 1, tzinfo=UTC))
    with pytest.raises(ConfigError, match="not a Unix time"):
        operator.revoke_client("alpha", "site-a", "why", until=datetime(2900, 1, 1, tzinfo=UTC))
    with pytest.raises(ConfigError, match="at most 500"):
        operator.revoke_client("alpha", "site-a", "x" * 501)
    with pytest.raises(ConfigError, match="site site-a is not excluded"):
        operator.readmit_client("alpha", "site-a")
    assert "exclusion" not in listeners.deployment.kinds()


def test_a_coordinator_that_is_away_is_reported_as_such(
    listeners: DeploymentListeners, operator: OperatorClient
) -> None:
    listeners.stop()
    with pytest.raises(Unreachable, match="cannot be reached"):
        operator.get_job("alpha")


def test_an_invitation_hides_its_token(operator: OperatorClient) -> None:
    invitation = operator.create_token("site-c", lifetime=timedelta(hours=1))
    assert invitation.token not in repr(invitation)
    assert timedelta(minutes=59) < invitation.expires - datetime.now(UTC) < timedelta(hours=1)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main.main(list(arguments))
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_a_site_is_invited_enrolled_approved_drained_and_removed(
    listeners: DeploymentListeners, login: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_operator = ("--operator", str(login))
    status, out, err = run(capsys, "site", "token", "site-c", *as_operator)
    assert status == 0
    assert "helm install" in err
    assert "fedlearn site approve site-c" in err
    made = JoinToken.parse(out)
    # The listener of the test has a port of its own; the secret is the one that was printed.
    token = JoinToken(
        address=listeners.gate, site=made.site, ca_pin=made.ca_pin, secret=made.secret
    )
    (tmp_path / "token.txt").write_text(token.encode() + "\n")
    enroll = ("site", "enroll", "--token-file", str(tmp_path / "token.txt"))
    state = ("--state", str(tmp_path / "site-c"))
    status, out, _ = run(capsys, *enroll, *state)
    assert status == 0
    assert "waits for approval" in out
    _, out, _ = run(capsys, "site", "list", "--json", *as_operator)
    listed = {site["name"]: site["status"] for site in json.loads(out)["sites"]}
    assert listed == {"site-a": "active", "site-b": "active", "site-c": "pending"}
    _, out, _ = run(capsys, "site", "approve", "site-c", *as_operator)
    assert "active" in out
    _, out, _ = run(capsys, *enroll, *state, "--json")
    assert json.loads(out)["status"] == "active"
    assert not SiteIdentity.load(tmp_path / "site-c").pending
    report = {"tees": ["tdx"], "devices": {"tdx.intel.com/tdx-guest": 2, "a/b": 1}, "ccnp": False}
    listeners.deployment.sites.report_capabilities("site-c", json.dumps(report))
    _, out, _ = run(capsys, "site", "show", "site-c", *as_operator)
    assert re.search(r"tees +tdx\n", out)
    assert re.search(r"devices +a/b 1, tdx.intel.com/tdx-guest 2\n", out)
    assert re.search(r"ccnp +no\n", out)
    assert "not seen since the coordinator started" in out
    _, out, _ = run(capsys, "site", "drain", "site-c", *as_operator)
    assert "draining" in out
    _, out, _ = run(capsys, "site", "remove", "site-c", "--json", *as_operator)
    assert json.loads(out)["status"] == "removed"
    _, out, _ = run(capsys, "site", "list", *as_operator)
    assert "removed" in out


def test_a_client_is_kept_out_and_readmitted_by_commands(
    listeners: DeploymentListeners, login: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_operator = ("--operator", str(login))
    about = ("alpha", "--site", "site-a", "--client", "c1")
    status, out, _ = run(
        capsys, "job", "revoke", *about, "--until", "12h", "--reason", "odd", *as_operator
    )
    assert status == 0
    assert "client c1 of site-a is excluded from alpha until" in out
    assert "fedlearn job readmit alpha --site site-a --client c1" in out
    with pytest.raises(AdmissionDenied, match="client c1 of site site-a is excluded"):
        listeners.deployment.admit(listeners.deployment.client())
    _, out, _ = run(capsys, "job", "status", "alpha", *as_operator)
    assert re.search(r"out +client c1 of site-a until \S+: odd \(operator alice\)", out)
    _, out, _ = run(capsys, "job", "status", "alpha", "--json", *as_operator)
    (row,) = json.loads(out)["exclusions"]
    assert (row["site"], row["client"], row["reason"]) == ("site-a", "c1", "odd")
    assert datetime.fromisoformat(row["until"]) > datetime.now(UTC) + timedelta(hours=11)
    assert "site-a is not excluded" in refused(
        capsys, "job", "readmit", "alpha", "--site", "site-a", *as_operator
    )
    assert run(capsys, "job", "readmit", *about, *as_operator)[0] == 0
    assert listeners.deployment.admit(listeners.deployment.client())
    _, out, _ = run(
        capsys, "job", "revoke", "alpha", "--site", "site-a", "--once", "--json", *as_operator
    )
    assert json.loads(out)["once"] is True


def test_a_revocation_by_command_that_is_wrong_is_named(
    listeners: DeploymentListeners, login: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_operator = ("--operator", str(login))
    revoke = ("job", "revoke", "alpha", "--site", "site-a", *as_operator)
    assert "--site" in refused(capsys, "job", "revoke", "alpha", *as_operator)
    for when in ("soon", "2030-01-31T12:00", "-3h", "0m", "12"):
        assert "is not a time" in refused(capsys, *revoke, "--until", when)
    assert "past" in refused(capsys, *revoke, "--until", "2001-01-01T00:00Z")
    assert "exclude each other" in refused(capsys, *revoke, "--until", "1h", "--once")
    assert "not a name" in refused(capsys, *revoke, "--client", "../x")
    assert "no live client" in refused(capsys, *revoke, "--once")
    assert "exclusion" not in listeners.deployment.kinds()


def test_an_operator_asks_is_added_logs_in_renews_and_is_revoked(
    listeners: DeploymentListeners,
    login: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    as_alice, as_bob = ("--operator", str(login)), ("--operator", str(tmp_path / "bob"))
    status, out, _ = run(capsys, "operator", "request", "bob", *as_bob)
    assert status == 0
    assert "fedlearn operator login FILE" in out
    csr = tmp_path / "bob/operator.csr"
    assert (tmp_path / "bob/operator.key").stat().st_mode & 0o777 == 0o600
    assert "waits for its certificate" in refused(capsys, "site", "list", *as_bob)
    _, out, _ = run(capsys, "operator", "add", "bob", str(csr), *as_alice)
    pin = listeners.deployment.ca.key_digest.hex()
    assert f"fedlearn operator login bob.toml --ca-pin {pin}" in out
    assert "PRIVATE" not in (tmp_path / "bob.toml").read_text()
    _, out, _ = run(capsys, "operator", "login", "bob.toml", "--ca-pin", pin, *as_bob)
    assert f"logged in to {listeners.control}" in out
    assert "alpha" in run(capsys, "job", "status", *as_bob)[1]
    former = (tmp_path / "bob/operator.key").read_bytes()
    _, out, _ = run(capsys, "operator", "renew", *as_bob)
    assert "operator bob has a new key" in out
    assert (tmp_path / "bob/operator.key").read_bytes() != former
    assert "alpha" in run(capsys, "job", "status", *as_bob)[1]
    _, out, _ = run(capsys, "operator", "list", "--json", *as_bob)
    rows = [(o["name"], o["revoked"], o["reason"]) for o in json.loads(out)["operators"]]
    assert sorted(rows) == [("alice", False, ""), ("bob", False, ""), ("bob", True, "renewed")]
    _, out, _ = run(capsys, "operator", "revoke", "bob", "--reason", "left us", *as_alice)
    assert "operator bob is revoked" in out
    reported = refused(capsys, "job", "status", *as_bob)
    assert "operator bob was revoked: left us" in reported
    assert re.search(r"bob +revoked: left us", run(capsys, "operator", "list", *as_alice)[1])
    assert "last operator" in refused(capsys, "operator", "revoke", "alice", *as_alice)


def test_an_operator_command_that_is_wrong_is_named(
    listeners: DeploymentListeners,
    login: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    as_alice = ("--operator", str(login))
    assert "not a name of an operator" in refused(capsys, "operator", "request", "Bob Smith")
    assert "exists" in refused(capsys, "operator", "request", "bob", *as_alice)
    assert "does not exist" in refused(capsys, "operator", "add", "bob", "none.csr", *as_alice)
    key = login / "operator.key"
    assert "private key" in refused(capsys, "operator", "add", "bob", str(key), *as_alice)
    ca = login / "ca.pem"
    assert "not a certification" in refused(capsys, "operator", "add", "bob", str(ca), *as_alice)
    (tmp_path / "bob.toml").write_text("")
    assert "--out" in refused(capsys, "operator", "add", "bob", str(ca), *as_alice)
    assert "give a NAME" in refused(capsys, "operator", "revoke", *as_alice)
    assert "give a NAME" in refused(capsys, "operator", "revoke", "b", "--serial", "1", *as_alice)
    assert "SHA-256" in refused(capsys, "operator", "login", "x", "--ca-pin", "12", *as_alice)
    assert "no request was made" in refused(capsys, "operator", "login", "x", *as_alice)
    assert [path.name for path in tmp_path.glob("*.toml")] == ["bob.toml"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["operator"]


def test_a_policy_is_replaced_with_the_signature_that_lies_beside_it(
    listeners: DeploymentListeners, login: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_operator = ("--operator", str(login))
    key = ed25519.Ed25519PrivateKey.generate()
    text = 'version = 2\nname = "p"\naccept = ["tpm"]\n'
    file = tmp_path / "policy.toml"
    file.write_text(text)
    _, out, _ = run(capsys, "job", "policy", "alpha", str(file), *as_operator)
    assert "job alpha uses version 2 of the policy 'p' (not signed)" in out
    signature = sign_policy(parse_policy(text.encode()), key)
    (tmp_path / "policy.toml.sig").write_bytes(signature)
    _, out, _ = run(capsys, "job", "policy", "alpha", str(file), "--json", *as_operator)
    assert json.loads(out)["signed"] is True
    assert listeners.coordinator.signatures == [b"", signature]
    assert listeners.coordinator.calls[-1] == ("policy", ("alice", "alpha", text))


def test_a_job_is_submitted_with_the_signature_of_its_policy(
    listeners: DeploymentListeners, login: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_operator = ("--operator", str(login))
    job = tmp_path / "my-job"
    run(capsys, "job", "init", str(job))
    key = ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "operator.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    policy, signature = job / "policy.toml", job / "policy.toml.sig"
    sign = ("policy", "sign", str(policy), "--key", str(tmp_path / "operator.pem"))
    assert run(capsys, *sign)[0] == 0
    signer = operator_key_digest(key.public_key()).hex()
    assert signer in run(capsys, "job", "validate", str(job / "job.toml"))[1]
    assert run(capsys, "job", "submit", str(job / "job.toml"), *as_operator)[0] == 0
    assert listeners.coordinator.signatures == [signature.read_bytes()]
    policy.write_text(policy.read_text().replace("version = 1", "version = 2", 1))
    changed = refused(capsys, "job", "submit", str(job / "job.toml"), *as_operator)
    assert "another policy" in changed
    assert len(listeners.coordinator.signatures) == 1


def test_a_policy_that_cannot_be_one_is_not_sent(
    listeners: DeploymentListeners, login: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_operator = ("--operator", str(login))
    missing = refused(capsys, "job", "policy", "alpha", str(tmp_path / "none"), *as_operator)
    assert "none" in missing
    (tmp_path / "policy.toml").write_text("accept = 7")
    assert "accept" in refused(
        capsys, "job", "policy", "alpha", str(tmp_path / "policy.toml"), *as_operator
    )
    (tmp_path / "policy.toml").write_text('accept = ["tpm"]')
    (tmp_path / "policy.toml.sig").write_bytes(bytes(10_000))
    assert "policy.toml.sig" in refused(
        capsys, "job", "policy", "alpha", str(tmp_path / "policy.toml"), *as_operator
    )
    assert listeners.coordinator.calls == []


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The command fails, states why in words, and shows no trace."""
    status, out, err = run(capsys, *arguments)
    assert status != 0
    assert "Traceback" not in out + err
    return err


def test_broken_input_is_one_message_and_leaves_nothing(
    listeners: DeploymentListeners, login: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_operator = ("--operator", str(login))
    assert "not a name of a site" in refused(capsys, "site", "show", "../x", *as_operator)
    assert "no site" in refused(capsys, "site", "show", "nobody", *as_operator)
    assert "duration" in refused(
        capsys, "site", "token", "site-c", "--lifetime", "soon", *as_operator
    )
    assert "lifetime" in refused(
        capsys, "site", "token", "site-c", "--lifetime", "400d", *as_operator
    )
    assert "active already" in refused(capsys, "site", "token", "site-a", *as_operator)
    out = ("--out", str(tmp_path / "operator" / "ca.pem"))
    assert "exists" in refused(capsys, "site", "token", "site-c", *out, *as_operator)
    trust = ("--insecure-trust-sample-key", "none.pub.pem")
    assert "neither a SHA-256" in refused(capsys, "site", "token", "site-c", *trust, *as_operator)
    assert "not invited" in refused(capsys, "site", "reject", "site-a", *as_operator)
    state = ("--state", str(tmp_path / "new"))
    enroll = ("site", "enroll", "--token-file")
    assert "cannot be read" in refused(capsys, *enroll, str(tmp_path / "none"), *state)
    (tmp_path / "junk").write_bytes(b"\xff" * 10)
    assert "does not contain a join token" in refused(
        capsys, *enroll, str(tmp_path / "junk"), *state
    )
    (tmp_path / "typo").write_text("fedlearn-join-AAAA")
    assert "mistyped" in refused(capsys, *enroll, str(tmp_path / "typo"), *state)
    forged = JoinToken.fresh(
        address=listeners.gate, site="site-c", ca_pin=listeners.deployment.ca.key_digest
    )
    (tmp_path / "forged").write_text(forged.encode())
    assert "not one of this coordinator" in refused(
        capsys, *enroll, str(tmp_path / "forged"), *state
    )
    assert not (tmp_path / "new").exists()
