"""The configuration is measured: whoever chooses it cannot do so unseen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edge.client.admission import verify_coordinator
from fedlearn.errors import AdmissionDenied
from server.admission.coordinator_evidence import CoordinatorProof
from server.config import ServerConfig
from server.main import main
from server.measurement import config_digest
from server.state_directory import StateDirectory, initialize, protector_names
from tests.harness.deployment import COORDINATOR_APP, LAUNCH, WORKLOAD
from tests.harness.listeners import DeploymentListeners

CONFIG = """\
state = "state"
trust_domain = "test.example"
[keys]
protect = ["insecure-plain-key-file"]
[trust]
tpm_ek_roots = ["root.pem"]
"""


def measured(folder: Path, text: str = CONFIG, root: bytes = b"root") -> bytes:
    (folder / "server.toml").write_text(text)
    (folder / "root.pem").write_bytes(root)
    config, document = ServerConfig.read(folder / "server.toml")
    roots = config.trust.anchors().tpm_ek_roots
    return config_digest(document, roots=roots, protectors=protector_names(config.keys))


def test_the_digest_is_the_one_that_is_documented(tmp_path: Path) -> None:
    text = (
        b'{"document":{"keys":{"protect":["insecure-plain-key-file"]},"state":"state",'
        b'"trust":{"tpm_ek_roots":["root.pem"]},"trust_domain":"test.example"},'
        b'"protectors":["insecure-plain-key-file"],"tpm_ek_roots":["'
        + hashlib.sha256(b"root").hexdigest().encode()
        + b'"]}'
    )
    assert measured(tmp_path) == hashlib.sha256(b"fedlearn-config/1\0" + text).digest()


def test_what_protects_the_root_key_is_what_it_was_at_the_first_start(tmp_path: Path) -> None:
    """Whoever initialized with a recovery key of their own stands in the evidence."""

    def settings(name: str, key: X25519PrivateKey) -> ServerConfig:
        pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / "recovery.pem").write_bytes(pem)
        (tmp_path / "passphrase").write_text("a passphrase that is long enough")
        (tmp_path / name).write_text(
            'state = "state"\ntrust_domain = "test.example"\n[keys]\n'
            'protect = ["passphrase", "recovery-key"]\nrecovery_key = "recovery.pem"\n'
            'passphrase_file = "passphrase"\n'
        )
        return ServerConfig.load(tmp_path / name)

    thief, owner = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    initialize(
        settings("server.toml", thief),
        now=datetime.now(UTC),
        control_address="127.0.0.1:1",
        operator_csr=None,
    )
    config = settings("server.toml", owner)
    with StateDirectory.open(config) as directory:
        sealed = directory.store.catalogue.protectors
    public = thief.public_key().public_bytes_raw().hex()
    assert sealed == ["passphrase", f"recovery-key:{public}"]
    expected = protector_names(config.keys)
    digests = {config_digest({}, roots=(), protectors=names) for names in (sealed, expected)}
    assert len(digests) == 2


def test_what_states_the_same_measures_the_same(tmp_path: Path) -> None:
    lines = CONFIG.splitlines()
    other = "\n".join(["# a comment", lines[1], lines[0], *lines[4:], *lines[2:4]])
    assert measured(tmp_path, other) == measured(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("test.example", "rest.example"),
        ("[trust]", f'[trust]\npolicy_keys = ["{"ab" * 32}"]'),
        ("[trust]", f'[trust]\ninsecure_sample_keys = ["{"ab" * 32}"]'),
        ("[trust]", '[trust]\nendorsements = ["root.pem"]'),
        ('"root.pem"', '"./root.pem"'),
        ("[keys]", "[limits]\njobs = 9\n[keys]"),
    ],
)
def test_another_configuration_measures_differently(tmp_path: Path, old: str, new: str) -> None:
    assert measured(tmp_path, CONFIG.replace(old, new)) != measured(tmp_path)


def test_another_root_in_the_same_place_measures_differently(tmp_path: Path) -> None:
    assert measured(tmp_path, root=b"toor") != measured(tmp_path)


def test_the_command_prints_what_a_policy_pins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = measured(tmp_path).hex()
    for words in (["--json"], []):
        with pytest.raises(SystemExit):
            main(["measure", "--config", str(tmp_path / "server.toml"), *words])
        out = capsys.readouterr().out
        assert digest in out
        if words:
            assert json.loads(out)["config"] == digest
        else:
            assert out.count("[[coordinator.reference]]") == 2
    assert list(tmp_path.iterdir()) != [], "and makes no state"
    assert not (tmp_path / "state").exists()


@pytest.fixture
def refusing(listeners: DeploymentListeners) -> Callable[[dict[str, bytes], bytes], None]:
    """Return what a client reports of a coordinator that measured one digest under a policy."""
    from attestation.attesters.sample import SampleAttester
    from edge.client.admission import AdmissionParams, ClientKeys
    from edge.protocol.rpc import GateClient

    def judge(measured: dict[str, bytes], pinned: bytes) -> None:
        policy = listeners.deployment.make_policy(
            coordinator_extra=f'[[coordinator.reference]]\nclaim = "config"\n'
            f'value = "{pinned.hex()}"\n'
        )
        claims = {"app": COORDINATOR_APP, "launch": LAUNCH, **measured}
        proof: CoordinatorProof = listeners.deployment.make_proof()
        proof._attester = SampleAttester(listeners.deployment.tee_key, b"chip", claims)
        listeners.running._gate_service._proof = proof
        params = AdmissionParams(
            job="alpha",
            site="site-a",
            client="c",
            workload=WORKLOAD,
            keys=ClientKeys.fresh(),
            policy=policy,
            trust=listeners.deployment.trust,
        )
        pin = listeners.deployment.ca.key_digest
        with GateClient.connect(listeners.gate, ca_pin=pin) as gate:
            verify_coordinator(gate, params, now=listeners.deployment.clock)

    return judge


def test_a_client_refuses_a_coordinator_with_another_configuration(
    refusing: Callable[[dict[str, bytes], bytes], None],
) -> None:
    refusing({"config": bytes(range(32))}, bytes(range(32)))
    with pytest.raises(AdmissionDenied, match="config is") as caught:
        refusing({"config": bytes(range(1, 33))}, bytes(range(32)))
    assert any(finding["claim"] == "config" for finding in caught.value.findings)
    with pytest.raises(AdmissionDenied, match="config is"):
        refusing({}, bytes(range(32)))
