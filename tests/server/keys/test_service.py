"""The key service: what a copied disk gives away, who opens it, and who is given a key."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.errors import UnsealError
from attestation.policy.result import AttestationResult, Finding, Tier
from fedlearn.errors import ConfigError, KeyReleaseDenied, StoreError
from fedlearn.sealing import Tensor, open_released, open_sealed, seal
from fedlearn.sealing.client_state import open_secret
from server.admission.registry import Admission, AdmissionRegistry
from server.keys.key_protectors import (
    InsecurePlainKeyFile,
    Passphrase,
    Protector,
    RecoveryKey,
    TpmPolicy,
)
from server.keys.root_key import RootKey
from server.keys.service import KeyService, state_secret_name
from server.naming import checked_name

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
WORDS = "correct horse battery staple"
CHEAP = 2**15


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """What the store knows of a sealed file."""

    model: str
    version: int
    file_id: bytes
    key: str


class Machine:
    """A TPM as the protector sees it: only this object opens what it sealed."""

    def __init__(self) -> None:
        self._root = RootKey(Path("/nonexistent"), bytes(range(32)))
        self.state = "good"

    def seal(self, secret: bytes) -> bytes:
        return self._root.seal(f"tpm-{self.state}", secret)

    def unseal(self, blob: bytes) -> bytes:
        return self._root.unseal(f"tpm-{self.state}", blob)


@pytest.fixture
def recovery() -> RecoveryKey:
    return RecoveryKey.of(X25519PrivateKey.generate())


def offline(key: RecoveryKey) -> RecoveryKey:
    return RecoveryKey(key.public)


# -- the root key


def test_a_new_machine_with_the_recovery_key_opens_everything(
    tmp_path: Path, recovery: RecoveryKey
) -> None:
    service = KeyService.create(tmp_path / "keys", [offline(recovery)])
    service.keep("ca", b"the key of the CA")
    service.define("demo", job="demo")
    path = tmp_path / "m"
    tensor = Tensor(name="w", dtype="U8", shape=(4,), data=b"1234")
    seal(path, [tensor], model="demo", version=1, round=0, key=service.model_key("demo"))
    shutil.copytree(tmp_path / "keys", tmp_path / "new")
    again = KeyService.open(tmp_path / "new", [recovery], expected_id=service.id)
    assert again.secret("ca") == b"the key of the CA"
    assert again.secret("other") is None
    with open_sealed(path, again) as reader:
        assert bytes(reader.tensor("w")) == b"1234"


def test_whoever_copies_the_disk_opens_nothing(tmp_path: Path, recovery: RecoveryKey) -> None:
    service = KeyService.create(
        tmp_path / "keys", [offline(recovery), Passphrase(WORDS, CHEAP), TpmPolicy(Machine())]
    )
    service.keep("ca", b"the key of the CA")
    service.define("demo", job="demo")
    content = service.model_key("demo").content_key(bytes(16))
    for path in (tmp_path / "keys").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            for secret in (b"the key of the CA", content, content.hex().encode()):
                assert secret not in data
            assert path.stat().st_mode & 0o077 == 0
    thief = X25519PrivateKey.generate()
    attempts: dict[str, Protector] = {
        "another recovery key": RecoveryKey.of(thief),
        "the recovery key's public half": offline(recovery),
        "a forged pair": RecoveryKey(recovery.public, thief),
        "another passphrase": Passphrase("incorrect horse battery", CHEAP),
        "another machine": TpmPolicy(_other_machine()),
    }
    for what, protector in attempts.items():
        with pytest.raises(StoreError, match="does not open") as caught:
            KeyService.open(tmp_path / "keys", [protector])
        assert protector.kind in str(caught.value), what
    with pytest.raises(StoreError, match="insecure-plain-key-file: does not protect"):
        KeyService.open(
            tmp_path / "keys",
            [InsecurePlainKeyFile(tmp_path / "keys")],
            allow_insecure_key_file=True,
        )
    stranger = KeyService.create(tmp_path / "own", [RecoveryKey.of(thief)])
    shutil.copytree(tmp_path / "keys" / "secrets", tmp_path / "own" / "secrets")
    with pytest.raises(StoreError, match="sealed under another root key"):
        stranger.secret("ca")


def _other_machine() -> Machine:
    machine = Machine()
    machine.state = "another"
    return machine


@pytest.mark.parametrize("which", ["recovery", "passphrase", "tpm"])
def test_each_protector_alone_opens(tmp_path: Path, recovery: RecoveryKey, which: str) -> None:
    machine = Machine()
    words = Passphrase(WORDS, CHEAP)
    everything: dict[str, Protector] = {
        "recovery": recovery,
        "passphrase": words,
        "tpm": TpmPolicy(machine),
    }
    service = KeyService.create(tmp_path, list(everything.values()))
    assert KeyService.open(tmp_path, [everything[which]]).id == service.id


def test_a_tpm_in_another_state_falls_back_to_the_recovery_key(
    tmp_path: Path, recovery: RecoveryKey
) -> None:
    machine = Machine()
    service = KeyService.create(tmp_path, [TpmPolicy(machine), offline(recovery)])
    machine.state = "after an update"
    with pytest.raises(StoreError, match="tpm-policy"):
        KeyService.open(tmp_path, [TpmPolicy(machine)])
    assert KeyService.open(tmp_path, [TpmPolicy(machine), recovery]).id == service.id


def test_a_plain_key_file_must_be_allowed_by_name(tmp_path: Path, recovery: RecoveryKey) -> None:
    plain = InsecurePlainKeyFile(tmp_path)
    with pytest.raises(ConfigError, match="insecure-plain-key-file leaves the root key readable"):
        KeyService.create(tmp_path, [plain])
    assert list(tmp_path.iterdir()) == []
    service = KeyService.create(tmp_path, [plain], allow_insecure_key_file=True)
    with pytest.raises(ConfigError, match="refused"):
        KeyService.open(tmp_path, [plain])
    assert KeyService.open(tmp_path, [plain], allow_insecure_key_file=True).id == service.id


def test_a_root_key_needs_a_protector_and_is_made_once(
    tmp_path: Path, recovery: RecoveryKey
) -> None:
    with pytest.raises(ConfigError, match="needs a protector"):
        KeyService.create(tmp_path, [])
    first = KeyService.create(tmp_path, [recovery])
    assert KeyService.open(tmp_path, [recovery]).id == first.id
    with pytest.raises(StoreError, match="already"):
        KeyService.create(tmp_path, [recovery])
    first.keep("ca", b"x")
    (tmp_path / "root.json").unlink()
    with pytest.raises(StoreError, match=r"root\.json is missing, but ca\.sealed"):
        KeyService.create(tmp_path, [recovery])


def test_a_directory_that_somebody_else_made_is_refused(
    tmp_path: Path, recovery: RecoveryKey
) -> None:
    mine = KeyService.create(tmp_path / "mine", [offline(recovery)])
    KeyService.create(tmp_path / "theirs", [offline(recovery)])
    with pytest.raises(StoreError, match=f"{mine.id} is expected"):
        KeyService.open(tmp_path / "theirs", [recovery], expected_id=mine.id)
    with pytest.raises(StoreError, match="there is no root key"):
        KeyService.open(tmp_path / "empty", [recovery], expected_id=mine.id)


def test_short_passphrases_are_refused_and_never_shown() -> None:
    with pytest.raises(ConfigError, match="12 to 1024 characters, this one has 5"):
        Passphrase("short")
    assert WORDS not in repr(Passphrase(WORDS))


def _first(document: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = document["protectors"][0]
    return entry


BROKEN_ROOT: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "cost": (lambda d: _first(d).update(n=2**40), "scrypt with n=1099511627776"),
    "cheap": (lambda d: _first(d).update(n=2), "scrypt with n=2;"),
    "odd": (lambda d: _first(d).update(n=40_000), "scrypt with n=40000"),
    "text": (lambda d: _first(d).update(n="x"), "scrypt with n='x'"),
    "other cost": (lambda d: _first(d).update(n=2**16), "passphrase is wrong"),
    "salt": (lambda d: _first(d).update(salt="00"), "scrypt"),
    "hex": (lambda d: _first(d).update(sealed="zz"), "not hexadecimal"),
    "missing": (lambda d: _first(d).pop("sealed"), "has no sealed"),
    "long": (lambda d: _first(d).update(sealed="00" * 9000), "has no sealed"),
    "empty": (lambda d: _first(d).update(sealed=""), "passphrase is wrong"),
    "id": (lambda d: d.update(root="00" * 8), "passphrase is wrong"),
    "version": (lambda d: d.update(version=2), "not the protectors"),
    "extra": (lambda d: d.update(more=1), "not the protectors"),
    "many": (lambda d: d.update(protectors=[{}] * 17), "not the protectors"),
    "items": (lambda d: d.update(protectors=[1]), "not the protectors"),
}


@pytest.mark.parametrize("case", sorted(BROKEN_ROOT))
def test_a_broken_root_file_is_named(tmp_path: Path, case: str) -> None:
    words = Passphrase(WORDS, CHEAP)
    KeyService.create(tmp_path, [words])
    change, reason = BROKEN_ROOT[case]
    document = json.loads((tmp_path / "root.json").read_text())
    change(document)
    (tmp_path / "root.json").write_text(json.dumps(document))
    with pytest.raises(StoreError, match=reason):
        KeyService.open(tmp_path, [words])


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"x" * 300_000])
def test_what_is_no_root_file(tmp_path: Path, data: bytes, recovery: RecoveryKey) -> None:
    (tmp_path / "root.json").write_bytes(data)
    with pytest.raises(StoreError, match=r"root\.json"):
        KeyService.open(tmp_path, [recovery])


# -- small secrets


def test_a_sealed_secret_opens_in_its_own_place_only(tmp_path: Path, recovery: RecoveryKey) -> None:
    service = KeyService.create(tmp_path, [recovery])
    service.keep("ca", b"one")
    service.keep("tls", b"two")
    secrets = tmp_path / "secrets"
    shutil.copy(secrets / "ca.sealed", secrets / "tls.sealed")
    with pytest.raises(StoreError, match=r"tls\.sealed: secret/tls: was altered"):
        service.secret("tls")
    raw = bytearray((secrets / "ca.sealed").read_bytes())
    for position in range(len(raw)):
        (secrets / "ca.sealed").write_bytes(
            raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :]
        )
        with pytest.raises(StoreError, match=r"ca\.sealed"):
            service.secret("ca")
    (secrets / "ca.sealed").write_bytes(raw[:20])
    with pytest.raises(StoreError, match="not a sealed value"):
        service.secret("ca")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "A", "a..b", "-a", "a" * 73, "a\n"])
def test_names_are_safe_file_names(name: str) -> None:
    with pytest.raises(StoreError, match="is not a name"):
        checked_name(name)


# -- model keys


def test_rotation_and_retirement(tmp_path: Path, recovery: RecoveryKey) -> None:
    service = KeyService.create(tmp_path / "keys", [recovery])
    service.define("demo", job="demo")
    tensor = Tensor(name="w", dtype="U8", shape=(4,), data=b"1234")
    old = tmp_path / "old"
    seal(old, [tensor], model="demo", version=1, round=0, key=service.model_key("demo"))
    service.rotate("demo")
    new = tmp_path / "new"
    seal(new, [tensor], model="demo", version=2, round=0, key=service.model_key("demo"))
    service = KeyService.open(tmp_path / "keys", [recovery])
    open_sealed(old, service).close()
    open_sealed(new, service).close()
    assert service.retire("demo") == 1
    assert service.retire("demo") == 0
    with pytest.raises(UnsealError, match="key '1' of the model 'demo' no longer exists"):
        open_sealed(old, service)
    open_sealed(new, service).close()
    other = KeyService.create(tmp_path / "other", [recovery])
    with pytest.raises(UnsealError, match=f"sealed under the key service {service.id}"):
        open_sealed(new, other)


def test_a_model_belongs_to_one_job(tmp_path: Path, recovery: RecoveryKey) -> None:
    service = KeyService.create(tmp_path, [recovery])
    service.define("demo", job="one")
    service.define("demo", job="one")
    with pytest.raises(StoreError, match="belongs to the job one"):
        service.define("demo", job="two")
    with pytest.raises(StoreError, match="no model 'none'"):
        service.model_key("none")
    assert service.models() == {"demo": "one"}


# -- release


@dataclass
class Scene:
    """A service with a sealed file, and a client that was admitted."""

    service: KeyService
    registry: AdmissionRegistry
    admission: Admission
    inside: X25519PrivateKey
    file: File
    path: Path
    entries: list[tuple[str, dict[str, Any]]]

    def release(self, admission: Admission | None = None, *, now: datetime = NOW) -> bytes:
        return self.service.release(
            admission or self.admission, self.file, registry=self.registry, now=now
        )


@pytest.fixture
def scene(tmp_path: Path, recovery: RecoveryKey) -> Scene:
    entries: list[tuple[str, dict[str, Any]]] = []
    service = KeyService.create(
        tmp_path / "keys", [recovery], record=lambda kind, body: entries.append((kind, dict(body)))
    )
    service.define("demo", job="demo")
    tensor = Tensor(name="w", dtype="U8", shape=(4,), data=b"1234")
    sealed = seal(
        tmp_path / "m", [tensor], model="demo", version=3, round=2, key=service.model_key("demo")
    )
    inside = X25519PrivateKey.generate()
    tls_key = (
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    thumbprint = hashlib.sha256(tls_key).digest()
    finding = Finding(claim="app", tier=Tier.AFFIRMING, expected="x", actual="x")
    expires = NOW + timedelta(minutes=30)
    admission = Admission(
        job="demo",
        site="site-a",
        client="c1",
        thumbprint=thumbprint,
        tls_key=tls_key,
        hpke_key=inside.public_key().public_bytes_raw(),
        serial=7,
        node_id=9,
        evidence_digest=bytes(32),
        policy_digest=bytes(32),
        result=AttestationResult(
            status=Tier.AFFIRMING,
            tee="tpm",
            findings=(finding,),
            policy=bytes(32),
            key_thumbprint=thumbprint,
            expires=expires,
        ),
        issued=NOW - timedelta(minutes=1),
        expires=expires,
    )
    registry = AdmissionRegistry()
    registry.add(admission, now=NOW)
    file = File(model="demo", version=3, file_id=sealed.header.file_id, key=sealed.header.key)
    return Scene(service, registry, admission, inside, file, tmp_path / "m", entries)


def test_an_admitted_client_opens_the_file(scene: Scene) -> None:
    wrapped = scene.release()
    key = open_released(wrapped, scene.inside, model="demo", file_id=scene.file.file_id)
    with open_sealed(scene.path, key) as reader:
        assert bytes(reader.tensor("w")) == b"1234"
    [(kind, body)] = scene.entries
    assert kind == "key-release"
    assert body["allowed"] is True
    assert (body["model"], body["version"]) == ("demo", 3)
    assert body["to"] == scene.admission.thumbprint.hex()
    assert json.dumps(body)


def _result(admission: Admission, **changes: Any) -> Admission:
    return dataclasses.replace(admission, result=dataclasses.replace(admission.result, **changes))


DENIED: dict[str, tuple[Callable[[Admission], Admission], str]] = {
    "none": (lambda a: _result(a, status=Tier.NONE), "result is none"),
    "warning": (lambda a: _result(a, status=Tier.WARNING), "result is warning"),
    "bad": (lambda a: _result(a, status=Tier.CONTRAINDICATED), "result is contraindicated"),
    "other key": (lambda a: dataclasses.replace(a, tls_key=b"x"), "not that of its TLS key"),
    "result key": (lambda a: _result(a, key_thumbprint=bytes(32)), "for another key"),
    "stale result": (lambda a: _result(a, expires=NOW), "result expired"),
    "expired": (lambda a: dataclasses.replace(a, expires=NOW), "certificate is valid from"),
    "early": (
        lambda a: dataclasses.replace(a, issued=NOW + timedelta(seconds=1)),
        "certificate is valid from",
    ),
    "no hpke": (lambda a: dataclasses.replace(a, hpke_key=b""), "no key to wrap to"),
    "weak hpke": (lambda a: dataclasses.replace(a, hpke_key=bytes(32)), "another one|no key"),
    "other job": (lambda a: dataclasses.replace(a, job="other"), "belongs to the job 'demo'"),
    "older": (lambda a: dataclasses.replace(a, serial=6), "another one"),
}


@pytest.mark.parametrize("case", sorted(DENIED))
def test_no_key_without_every_condition(scene: Scene, case: str) -> None:
    change, reason = DENIED[case]
    with pytest.raises(KeyReleaseDenied, match=reason):
        scene.release(change(scene.admission))
    [(kind, body)] = scene.entries
    assert kind == "key-release"
    assert body["allowed"] is False
    assert body["reason"]


STATE_DENIED = {
    **DENIED,
    "weak hpke": (DENIED["weak hpke"][0], "another one|no key"),
    "other job": (DENIED["other job"][0], "another one"),
}


@pytest.mark.parametrize("case", sorted(STATE_DENIED))
def test_no_secret_of_states_without_every_condition(scene: Scene, case: str) -> None:
    change, reason = STATE_DENIED[case]
    with pytest.raises(KeyReleaseDenied, match=reason):
        scene.service.release_state(change(scene.admission), registry=scene.registry, now=NOW)
    [(kind, body)] = scene.entries
    assert (kind, body["allowed"]) == ("key-release", False)
    assert scene.service.secret(state_secret_name("demo")) is None


def test_each_client_of_a_site_gets_the_secret_of_its_states_and_no_other_sites(
    scene: Scene,
) -> None:
    names = {"job": "demo", "site": scene.admission.site}
    found = [
        open_secret(
            scene.service.release_state(scene.admission, registry=scene.registry, now=NOW),
            scene.inside,
            **names,
        )
        for _ in range(2)
    ]
    assert found[0] == found[1]
    assert [(kind, body["allowed"]) for kind, body in scene.entries] == [("key-release", True)] * 2
    # A job that was deleted takes the secret with it.
    scene.service.discard(state_secret_name("demo"))
    again = scene.service.release_state(scene.admission, registry=scene.registry, now=NOW)
    assert open_secret(again, scene.inside, **names) != found[0]
    scene.registry.revoke(scene.admission.thumbprint, "site drained", now=NOW)
    with pytest.raises(KeyReleaseDenied, match="revoked: site drained"):
        scene.service.release_state(scene.admission, registry=scene.registry, now=NOW)


def test_an_ended_admission_gets_no_key(scene: Scene) -> None:
    with pytest.raises(KeyReleaseDenied, match="certificate is valid"):
        scene.release(now=NOW + timedelta(minutes=30))
    scene.registry.quarantine(scene.admission.thumbprint, "did not renew", now=NOW)
    with pytest.raises(KeyReleaseDenied, match="quarantined: did not renew"):
        scene.release()
    scene.registry.add(scene.admission, now=NOW)
    scene.release()
    scene.registry.revoke(scene.admission.thumbprint, "site drained", now=NOW)
    with pytest.raises(KeyReleaseDenied, match="revoked: site drained"):
        scene.release()
    assert [body["allowed"] for _, body in scene.entries] == [False, False, True, False]


def test_no_key_for_an_unknown_or_retired_model(scene: Scene) -> None:
    scene.file = dataclasses.replace(scene.file, model="other")
    with pytest.raises(KeyReleaseDenied, match="there is no model 'other'"):
        scene.release()
    scene.file = dataclasses.replace(scene.file, model="demo")
    scene.service.rotate("demo")
    scene.service.retire("demo")
    with pytest.raises(KeyReleaseDenied, match="no longer exists"):
        scene.release()


def test_a_release_that_cannot_be_recorded_does_not_take_place(scene: Scene) -> None:
    def broken(kind: str, body: object) -> None:
        raise OSError(28, "No space left on device")

    scene.service.record_with(broken)
    with pytest.raises(OSError, match="No space"):
        scene.release()
