"""``fedlearn model``: who may open a model does, and everybody else learns why not."""

from __future__ import annotations

import json
import os
import shutil
import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from fedlearn.cli import main
from fedlearn.identity.login import OperatorLogin
from fedlearn.sealing import FileSigner, RandomKey, Tensor, read_header, seal
from server.identity.pki import CertificateAuthority
from server.keys.key_protectors import InsecurePlainKeyFile, Passphrase, RecoveryKey
from server.keys.service import KeyService
from server.ledger import LEDGER_FILE, LedgerReader
from server.store.models import ModelStore
from server.store.state_binding import open_bound
from tests.harness.bound_state import bound_state

WORDS = "correct horse battery staple"
WEIGHTS: dict[str, np.ndarray[Any, Any]] = {
    "w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.ones(2, dtype=np.float64),
}


@dataclass(frozen=True)
class Setup:
    """A coordinator's state with two versions of a model, and the keys of people."""

    state: Path
    recovery: Path
    passphrase: Path
    owner: Path
    other: Path
    sealed: Path
    pin: str

    @property
    def unlocked(self) -> tuple[str, str, str, str]:
        return ("--state", str(self.state), "--recovery-key", str(self.recovery))

    @property
    def mine(self) -> tuple[str, ...]:
        """How the owner opens a file of this coordinator."""
        return ("--key", str(self.owner), "--ca-pin", self.pin)


def pem(path: Path, key: PrivateKeyTypes, password: bytes | None = None) -> Path:
    protection = BestAvailableEncryption(password) if password else NoEncryption()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection))
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setenv("FEDLEARN_OPERATOR", str(tmp_path / "no-login"))
    recovery, owner = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    state = tmp_path / "state"
    passphrase = tmp_path / "passphrase"
    passphrase.write_text(WORDS + "\n")
    keys = KeyService.create(
        state / "keys",
        [RecoveryKey(recovery.public_key().public_bytes_raw()), Passphrase(WORDS, 2**15)],
    )
    ca = CertificateAuthority.create("models.example", datetime.now(UTC))
    keys.keep("ca-key", ca.private_bytes())
    (state / "ca.pem").write_bytes(ca.certificate_pem)
    with bound_state(state, keys, signer=ca.file_signer) as (_, store):
        store.write("demo", {name: 0 * array for name, array in WEIGHTS.items()}, round=1)
        stored = store.write(
            "demo",
            WEIGHTS,
            round=2,
            state=b"momentum",
            meta={"final": True},
            recipients=[owner.public_key().public_bytes_raw()],
        )
    return Setup(
        state=state,
        recovery=pem(tmp_path / "recovery.pem", recovery),
        passphrase=passphrase,
        owner=pem(tmp_path / "owner.pem", owner),
        other=pem(tmp_path / "other.pem", X25519PrivateKey.generate()),
        sealed=stored.path,
        pin=ca.key_digest.hex(),
    )


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["model", *map(str, arguments)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    assert isinstance(caught.value.code, int)
    return caught.value.code, captured.out, captured.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int = 1) -> str:
    code, out, err = run(capsys, *arguments)
    assert code == status
    assert out == ""
    assert len(err.splitlines()) <= 3
    return err


def test_listing(capsys: pytest.CaptureFixture[str], place: Setup) -> None:
    code, out, _ = run(capsys, "list", *place.unlocked)
    assert code == 0
    assert [row.split()[:4] for row in out.splitlines()] == [
        ["MODEL", "VERSION", "JOB", "ROUND"],
        ["demo", "1", "demo", "1"],
        ["demo", "2", "demo", "2"],
    ]
    code, out, _ = run(capsys, "list", "--json", *place.unlocked)
    assert [item["version"] for item in json.loads(out)["models"]] == [1, 2]


def test_each_way_of_unlocking(capsys: pytest.CaptureFixture[str], place: Setup) -> None:
    state = ("--state", place.state)
    assert run(capsys, "list", *state, "--passphrase-file", place.passphrase)[0] == 0
    sealed = refused(capsys, "list", *state)
    assert "the state is sealed; its key is protected by recovery-key, passphrase" in sealed
    assert "--recovery-key FILE (the private key) or --passphrase-file FILE or --conf" in sealed
    assert "not by" in refused(capsys, "list", *state, "--recovery-key", place.other)
    place.passphrase.write_text("another passphrase entirely")
    assert "passphrase is wrong" in refused(
        capsys, "list", *state, "--passphrase-file", place.passphrase
    )
    assert "does not protect this root key" in refused(
        capsys, "list", *state, "--insecure-plain-key-file"
    )
    assert "--state" in refused(capsys, "list")
    assert "--state" in refused(capsys, "list", "--recovery-key", place.recovery)
    assert "no such directory" in refused(capsys, "list", "--state", place.state / "none")


def test_a_development_set_up_opens_when_asked_for_by_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    state = tmp_path / "dev"
    keys = KeyService.create(
        state / "keys", [InsecurePlainKeyFile(state / "keys")], allow_insecure_key_file=True
    )
    ModelStore.open(state / "store", keys).close()
    assert "the state is sealed" in refused(capsys, "list", "--state", state)
    code, out, _ = run(capsys, "list", "--state", state, "--insecure-plain-key-file")
    assert (code, out) == (0, "no models\n")


def test_opening_a_model_of_the_coordinator(
    capsys: pytest.CaptureFixture[str], place: Setup
) -> None:
    code, out, _ = run(capsys, "open", "demo", *place.unlocked)
    assert code == 0
    assert "demo, version 2, after round 2" in out
    assert "w  F32  3 x 4" in out
    assert "2 tensors, 64 bytes, every chunk authentic: as in the coordinator's sealed" in out
    code, out, _ = run(capsys, "open", "demo", "--version", "1", "--json", *place.unlocked)
    assert json.loads(out)["version"] == 1
    assert "demo has no version 9" in refused(
        capsys, "open", "demo", "--version", "9", *place.unlocked
    )
    assert "no model 'nope'" in refused(capsys, "open", "nope", *place.unlocked)
    assert "is not a name" in refused(capsys, "open", "../demo", *place.unlocked)


def test_the_owner_opens_a_sealed_file_and_another_key_is_refused(
    capsys: pytest.CaptureFixture[str], place: Setup, tmp_path: Path
) -> None:
    file = shutil.copy(place.sealed, tmp_path / "model.flsw")
    shutil.rmtree(place.state)
    code, out, _ = run(capsys, "open", file, *place.mine, "--json")
    assert code == 0
    opened = json.loads(out)
    assert (opened["authenticated"], opened["origin"]) == (True, "signature")
    assert opened["meta"] == {"job": "demo", "final": True}
    assert [item["name"] for item in opened["tensors"]] == ["w", "b"]
    err = refused(capsys, "open", file, "--key", place.other, status=2)
    assert "not for this key" in err
    assert refused(capsys, "export", file, "--key", place.other, "--out", tmp_path / "o", status=2)
    assert not (tmp_path / "o").exists()
    code, _, _ = run(capsys, "export", file, *place.mine, "--out", tmp_path / "o")
    assert code == 0
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "o")["w"], WEIGHTS["w"])


def test_bad_files_and_keys(
    capsys: pytest.CaptureFixture[str], place: Setup, tmp_path: Path
) -> None:
    def attempt(file: Path, key: Path) -> str:
        return refused(capsys, "open", file, "--key", key, "--ca-pin", place.pin)

    noise = tmp_path / "noise"
    noise.write_bytes(os.urandom(100))
    os.mkfifo(tmp_path / "fifo")
    assert "does not start with FLSW" in attempt(noise, place.owner)
    assert "no such file" in attempt(tmp_path / "none", place.owner)
    assert "is a directory" in attempt(tmp_path, place.owner)
    assert "illegal seek" in attempt(tmp_path / "fifo", place.owner)
    assert "does not exist" in attempt(place.sealed, tmp_path / "none.pem")
    assert "holds no key" in attempt(place.sealed, noise)
    public = tmp_path / "owner.pub.pem"
    key = X25519PrivateKey.generate()
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    assert "holds a public key, the private one is needed" in attempt(place.sealed, public)
    curve = pem(tmp_path / "ec.pem", ec.generate_private_key(ec.SECP256R1()))
    assert "is not an X25519 key" in attempt(place.sealed, curve)
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN PRIVATE KEY-----\nnope\n-----END PRIVATE KEY-----\n")
    assert "is not a private key in PEM" in attempt(place.sealed, broken)
    locked = pem(tmp_path / "locked.pem", key, b"secret")
    assert "there is no terminal" in attempt(place.sealed, locked)
    raw = bytearray(place.sealed.read_bytes())
    raw[-65] ^= 1
    noise.write_bytes(raw)
    assert "tensor 'fedlearn.state', chunk 2 of the file: was altered" in attempt(
        noise, place.owner
    )
    assert "--key" in refused(capsys, "open", place.sealed)
    assert "leave out" in refused(capsys, "open", "demo", *place.unlocked, "--key", place.owner)
    wrong = ("open", place.sealed, "--key", place.owner, "--version", "1")
    assert "the file contains version 2" in refused(capsys, *wrong)


def test_an_export_is_private_and_in_the_ledger(
    capsys: pytest.CaptureFixture[str], place: Setup, tmp_path: Path
) -> None:
    out = tmp_path / "model.safetensors"
    code, text, _ = run(capsys, "export", "demo", "--out", out, *place.unlocked)
    assert code == 0
    assert "in plaintext" in text
    assert out.stat().st_mode & 0o777 == 0o600
    loaded = safetensors.numpy.load_file(out)
    assert sorted(loaded) == ["b", "w"]
    np.testing.assert_array_equal(loaded["w"], WEIGHTS["w"])
    [entry] = LedgerReader(place.state / LEDGER_FILE).entries(kind="export")
    assert (entry.body["model"], entry.body["version"]) == ("demo", 2)
    before = out.read_bytes()
    assert "exists already" in refused(capsys, "export", "demo", "--out", out, *place.unlocked)
    assert out.read_bytes() == before
    inside = place.state / "out"
    assert "contains no plaintext" in refused(
        capsys, "export", "demo", "--out", inside, *place.unlocked
    )
    assert not inside.exists()
    nowhere = tmp_path / "no" / "out"
    assert "no such file" in refused(capsys, "export", "demo", "--out", nowhere, *place.unlocked)


def test_verify_finds_damage_and_an_older_state(
    capsys: pytest.CaptureFixture[str], place: Setup
) -> None:
    code, out, _ = run(capsys, "verify", *place.unlocked)
    assert code == 0
    assert "intact: 2 versions of 1 models, as in the ledger" in out
    assert run(capsys, "verify", "demo", *place.unlocked)[0] == 0
    good = place.sealed.read_bytes()
    for at, what in ((-1, "did not sign this file"), (-65, "as it was sealed at another time")):
        raw = bytearray(good)
        raw[at] ^= 1
        place.sealed.write_bytes(raw)
        err = refused(capsys, "verify", *place.unlocked, status=2)
        assert "damaged: demo, version 2" in err
        assert what in err
    code, out, _ = run(capsys, "verify", "--json", *place.unlocked)
    assert code == 2
    assert json.loads(out)["intact"] is False


def test_an_older_store_is_found_out_by_the_ledger(
    capsys: pytest.CaptureFixture[str], place: Setup, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(place.state / "store", old)
    keys = KeyService.open(place.state / "keys", [Passphrase(WORDS, 2**15)])
    with open_bound(place.state, keys) as (_, store):
        store.write("demo", WEIGHTS, round=3)
        store.write("other", WEIGHTS, round=1)
    assert run(capsys, "verify", *place.unlocked)[0] == 0
    shutil.rmtree(place.state / "store")
    shutil.copytree(old, place.state / "store")
    err = refused(capsys, "verify", *place.unlocked, status=2)
    assert "rolled back: ledger-head.sealed of the store is of entry 3" in err
    assert "rolled back: demo is at version 2, version 3 was written" in err
    assert "other: version 1 was written and is missing" in err


def test_rotation(capsys: pytest.CaptureFixture[str], place: Setup, tmp_path: Path) -> None:
    copy = shutil.copy(place.sealed, tmp_path / "old.flsw")
    code, out, _ = run(capsys, "rotate", "demo", *place.unlocked)
    assert code == 0
    assert "demo: 2 versions sealed under the key" in out
    assert run(capsys, "verify", *place.unlocked)[0] == 0
    assert not place.sealed.exists()
    assert run(capsys, "open", copy, *place.mine)[0] == 0
    [entry] = LedgerReader(place.state / LEDGER_FILE).entries(kind="model")
    assert entry.body["change"] == "rotated"
    assert "no model 'nope'" in refused(capsys, "rotate", "nope", *place.unlocked)


def test_nothing_is_written_beside_a_running_coordinator(
    capsys: pytest.CaptureFixture[str], place: Setup, tmp_path: Path
) -> None:
    keys = KeyService.open(place.state / "keys", [Passphrase(WORDS, 2**15)])
    with ModelStore.open(place.state / "store", keys):
        assert run(capsys, "list", *place.unlocked)[0] == 0
        assert "another process writes" in refused(capsys, "rotate", "demo", *place.unlocked)


def test_errors_are_one_object_for_programs(
    capsys: pytest.CaptureFixture[str], place: Setup
) -> None:
    code, out, err = run(capsys, "open", place.sealed, "--key", place.other, "--json")
    assert (code, err) == (2, "")
    assert json.loads(out)["error"]["code"] == "key-release-denied"


# Who sealed a file.


def forged(place: Setup, path: Path, signer: FileSigner | None = None) -> Path:
    """Make what somebody makes who knows the owner's public key and nothing else."""
    header = read_header(place.sealed)
    tensor = Tensor(name="w", dtype="F32", shape=(2,), data=struct.pack("<2f", 6.6, 6.6))
    seal(
        path,
        [tensor],
        model=header.model,
        version=header.version + 1,
        round=header.round + 1,
        key=RandomKey(key_id=header.key),
        recipients=[wrap.recipient for wrap in header.wraps],
        meta=header.meta,
        signer=signer,
    )
    return path


def test_a_model_that_anybody_made_for_the_owner_is_refused(
    capsys: pytest.CaptureFixture[str], place: Setup, tmp_path: Path
) -> None:
    stranger = FileSigner(ec.generate_private_key(ec.SECP256R1()))
    for signer, why in ((None, "it is not signed"), (stranger, "which is not pinned")):
        file = forged(place, tmp_path / "forged", signer)
        for command in (("open", file), ("export", file, "--out", tmp_path / "out")):
            err = refused(capsys, *command, *place.mine, status=2)
            assert why in err
            assert f"was not sealed by the coordinator whose CA is {place.pin}" in err
            ledger = ("--key", place.owner, "--ledger", place.state / LEDGER_FILE)
            assert "has no demo, version 3" in refused(capsys, *command, *ledger, status=2)
        code, out, _ = run(capsys, "open", file, *place.mine, "--json")
        assert (code, json.loads(out)["error"]["code"]) == (2, "model-not-authentic")
    assert not (tmp_path / "out").exists()


def test_a_forged_model_as_it_was_reported_is_refused(
    capsys: pytest.CaptureFixture[str], place: Setup, tmp_path: Path
) -> None:
    reported = Path(__file__).parent / "reported"
    key = tmp_path / "forged_owner.pem"
    key.write_bytes((reported / "forged_owner.pem").read_bytes())
    key.chmod(0o600)
    file = reported / "forged.flsw"
    assert "no option states who must have sealed" in refused(capsys, "open", file, "--key", key)
    known = ("--key", key, "--ca-pin", place.pin)
    assert "it is not signed" in refused(capsys, "open", file, *known, status=2)
    code, out, _ = run(capsys, "open", file, "--key", key, "--insecure-unknown-origin")
    assert code == 0
    assert "NOT AUTHENTICATED" in out
    assert "every chunk authentic" not in out


def test_nobody_is_believed_unless_somebody_was_named(
    capsys: pytest.CaptureFixture[str], place: Setup, tmp_path: Path
) -> None:
    for command in (("open", place.sealed), ("export", place.sealed, "--out", tmp_path / "out")):
        err = refused(capsys, *command, "--key", place.owner)
        assert "no option states who must have sealed the file" in err
        assert "--insecure-unknown-origin" in err
    assert not (tmp_path / "out").exists()
    code, out, _ = run(
        capsys, "open", place.sealed, "--key", place.owner, "--insecure-unknown-origin", "--json"
    )
    output = json.loads(out)
    assert (code, output["authenticated"], output["origin"]) == (0, False, "nothing")
    two = (*place.mine, "--insecure-unknown-origin")
    assert "one of" in refused(capsys, "open", place.sealed, *two)
    assert "--ca-pin" in refused(
        capsys, "open", place.sealed, "--key", place.owner, "--ca-pin", "0"
    )
    short = ("--key", place.owner, "--ca-pin", "00")
    assert "SHA-256 of 32 bytes" in refused(capsys, "open", place.sealed, *short)
    assert "of a --ledger" in refused(
        capsys, "open", place.sealed, *place.mine, "--ledger-key", place.owner
    )
    assert "catalogue" in refused(capsys, "open", "demo", *place.unlocked, "--ca-pin", place.pin)


@pytest.mark.parametrize("named", [True, False])
def test_the_login_of_an_operator_states_whose_models_are_theirs(
    capsys: pytest.CaptureFixture[str],
    place: Setup,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    named: bool,
) -> None:
    login = OperatorLogin(
        address="coordinator:1",
        ca=(place.state / "ca.pem").read_bytes(),
        chain=(place.state / "ca.pem").read_bytes(),
        key=place.owner.read_bytes(),
    )
    login.save(tmp_path / "login")
    if not named:
        monkeypatch.setenv("FEDLEARN_OPERATOR", str(tmp_path / "login"))
    by = ("--operator", tmp_path / "login") if named else ()
    code, out, _ = run(capsys, "open", place.sealed, "--key", place.owner, *by)
    assert code == 0
    assert f"every chunk authentic: signed by the coordinator whose CA is {place.pin}" in out
    file = forged(place, tmp_path / "forged")
    assert "it is not signed" in refused(capsys, "open", file, "--key", place.owner, *by, status=2)


def test_a_ledger_states_whose_a_model_is_before_and_after_a_rotation(
    capsys: pytest.CaptureFixture[str], place: Setup, tmp_path: Path
) -> None:
    copy = shutil.copy(place.sealed, tmp_path / "old.flsw")
    ledger = ("--key", place.owner, "--ledger", place.state / LEDGER_FILE)
    code, out, _ = run(capsys, "open", copy, *ledger)
    assert code == 0
    assert "entry 3 of the ledger has its digest" in out
    assert run(capsys, "rotate", "demo", *place.unlocked)[0] == 0
    code, out, _ = run(capsys, "list", "--json", *place.unlocked)
    fresh = json.loads(out)["models"][-1]["file"]
    code, out, _ = run(capsys, "open", fresh, *ledger, "--json")
    assert (code, json.loads(out)["origin"]) == (0, "ledger")
    public = place.state / "ledger.pub.pem"
    other = tmp_path / "other.pub.pem"
    other.write_bytes(
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    assert run(capsys, "open", fresh, *ledger, "--ledger-key", public)[0] == 0
    assert "does not begin a ledger of this key" in refused(
        capsys, "open", fresh, *ledger, "--ledger-key", other
    )
    assert "there is no ledger" in refused(
        capsys, "open", fresh, "--key", place.owner, "--ledger", tmp_path / "none"
    )


def test_one_tensor_is_exported_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: Setup
) -> None:
    sources: tuple[tuple[str | Path, ...], ...] = (
        (place.sealed, *place.mine),
        ("demo", *place.unlocked),
    )
    for number, source in enumerate(sources):
        out = tmp_path / f"{number}.safetensors"
        assert run(capsys, "export", *source, "--tensor", "b", "--out", out)[0] == 0
        found = safetensors.numpy.load_file(out)
        assert list(found) == ["b"]
        assert np.array_equal(found["b"], WEIGHTS["b"])
        # Neither an unknown name nor the strategy's state is written.
        for name in ("x", "fedlearn.state"):
            nothing = tmp_path / "nothing"
            text = refused(capsys, "export", *source, "--tensor", name, "--out", nothing)
            assert f"has no tensor '{name}'" in text
            assert not nothing.exists()
