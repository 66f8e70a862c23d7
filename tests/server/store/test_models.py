"""The sealed store: what was written last is what is read, or the fault is named."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

import server.store.model_files
from attestation.durable import (
    DurableFile,
)
from attestation.errors import UnsealError
from fedlearn.errors import StoreError, UpdateRejected
from fedlearn.sealing import (
    FileSigner,
    PrivateKey,
    SealedWriter,
    open_sealed,
    read_header,
    signer_digest,
)
from fedlearn.update import sealed
from fedlearn.update.arrays import Update
from server.keys.key_protectors import RecoveryKey
from server.keys.service import KeyService
from server.ledger import Ledger
from server.store.models import ModelStore
from server.store.rollback import check_not_older

Arrays = dict[str, np.ndarray[Any, Any]]
SIGNER = FileSigner(ec.generate_private_key(ec.SECP256R1()))


class Counter:
    """A monotonic counter, as a TPM has one."""

    def __init__(self, value: int = 7) -> None:
        self.value = value
        self.broken = False

    def create(self) -> int:
        return self.value

    def increment(self) -> int:
        if self.broken:
            raise OSError("the TPM does not answer")
        self.value += 1
        return self.value


@pytest.fixture
def recovery() -> RecoveryKey:
    return RecoveryKey.of(X25519PrivateKey.generate())


@pytest.fixture
def keys(tmp_path: Path, recovery: RecoveryKey) -> KeyService:
    return KeyService.create(tmp_path / "state" / "keys", [recovery])


@pytest.fixture
def store(tmp_path: Path, keys: KeyService) -> Iterator[ModelStore]:
    with ModelStore.open(tmp_path / "state" / "store", keys, signer=SIGNER) as opened:
        yield opened


def arrays(seed: int = 0) -> Arrays:
    draw = np.random.default_rng(seed)
    return {
        "layer.weight": draw.normal(size=(300, 1000)).astype(np.float32),
        "layer.bias": draw.normal(size=7).astype(np.float16),
        "steps": np.array(seed, dtype=np.int64),
    }


def same(one: Arrays, two: Arrays) -> bool:
    return list(one) == list(two) and all(
        one[name].dtype == two[name].dtype and one[name].tobytes() == two[name].tobytes()
        for name in one
    )


def test_versions_grow_and_survive_a_restart(
    tmp_path: Path, keys: KeyService, recovery: RecoveryKey
) -> None:
    with ModelStore.open(tmp_path / "state" / "store", keys) as store:
        for number in (1, 2, 3):
            stored = store.write("demo", arrays(number), round=number - 1, state=b"s%d" % number)
            assert (stored.version, stored.round, stored.job) == (number, number - 1, "demo")
    again = KeyService.open(tmp_path / "state" / "keys", [recovery])
    with ModelStore.open(tmp_path / "state" / "store", again) as store:
        assert store.models() == ("demo",)
        assert [item.version for item in store.versions("demo")] == [1, 2, 3]
        assert same(store.load("demo"), arrays(3))
        assert same(store.load("demo", 1), arrays(1))
        assert store.state("demo") == b"s3"
        assert store.latest("demo", expected_version=3).version == 3
        assert store.verify("demo")[-1].digest == store.latest("demo").digest
        assert store.write("demo", arrays(4), round=3).version == 4
        assert store.state("demo") == b""


def test_the_ledger_is_reported(tmp_path: Path, keys: KeyService) -> None:
    received: list[tuple[str, dict[str, Any]]] = []
    with ModelStore.open(
        tmp_path / "s", keys, record=lambda k, b: received.append((k, dict(b)))
    ) as store:
        stored = store.write("m", arrays(), round=4, job="demo")
        store.export("m", tmp_path / "out")
        store.rotate("m")
    assert received[0] == (
        "checkpoint",
        {
            "job": "demo",
            "model": "m",
            "version": 1,
            "round": 4,
            "file_id": stored.file_id.hex(),
            "digest": stored.digest.hex(),
        },
    )
    assert received[1][0] == "export"
    assert received[1][1]["to"] == str(tmp_path / "out")
    assert (received[2][0], received[2][1]["change"]) == ("model", "rotated")


def test_unknown_models_versions_and_names(store: ModelStore) -> None:
    with pytest.raises(StoreError, match="no model 'demo'"):
        store.latest("demo")
    store.write("demo", arrays(), round=0)
    with pytest.raises(StoreError, match="demo has no version 2"):
        store.load("demo", 2)
    for bad in ("../demo", "a/b", "", "Demo", "."):
        with pytest.raises(StoreError, match="is not a name"):
            store.write(bad, arrays(), round=0)
    with pytest.raises(StoreError, match="belongs to the job demo"):
        store.write("demo", arrays(), round=0, job="other")
    with pytest.raises(UpdateRejected, match="cannot be sent"):
        store.write("demo", {"x": np.array([object()])}, round=0)
    with pytest.raises(StoreError, match="two tensors have the same name"):
        store.write("demo", {sealed.STATE: np.zeros(1)}, round=0, state=b"x")
    assert store.latest("demo").version == 1


# -- tampering and rollback


def test_a_changed_file_is_named(store: ModelStore) -> None:
    stored = store.write("demo", arrays(), round=0)
    raw = bytearray(stored.path.read_bytes())
    raw[len(raw) // 2] ^= 1
    stored.path.write_bytes(raw)
    with pytest.raises(StoreError, match=r"demo, version 1: tensor 'layer\.weight', chunk 0"):
        store.load("demo")
    with pytest.raises(StoreError, match="version 1"):
        store.verify("demo")
    raw[-3] ^= 1
    stored.path.write_bytes(raw)
    with pytest.raises(StoreError, match="as it was sealed at another time"):
        store.open_model("demo")
    stored.path.write_bytes(raw[:-1])
    with pytest.raises(StoreError, match="demo, version 1: the file is too short by 1 bytes"):
        store.load("demo")
    stored.path.unlink()
    with pytest.raises(StoreError, match=r"demo, version 1: .* is missing"):
        store.load("demo")


def test_an_older_file_under_the_newer_name_is_refused(store: ModelStore) -> None:
    old = store.write("demo", arrays(1), round=0)
    new = store.write("demo", arrays(2), round=1)
    shutil.copy(old.path, new.path)
    with pytest.raises(StoreError, match="version 2: the file holds version 1"):
        store.load("demo")


def test_the_same_version_of_another_history_is_refused(tmp_path: Path, keys: KeyService) -> None:
    place = tmp_path / "s"
    with ModelStore.open(place, keys) as store:
        store.write("demo", arrays(1), round=0)
    shutil.copytree(place, tmp_path / "copy")
    with ModelStore.open(tmp_path / "copy", keys) as store:
        other = store.write("demo", arrays(2), round=1)
    with ModelStore.open(place, keys) as store:
        mine = store.write("demo", arrays(3), round=1)
        shutil.copy(other.path, mine.path)
        with pytest.raises(StoreError, match="version 2 as it was sealed at another time"):
            store.load("demo")


def test_an_older_directory_is_refused_by_what_the_ledger_knows(
    tmp_path: Path, keys: KeyService
) -> None:
    place = tmp_path / "s"
    with ModelStore.open(place, keys) as store:
        store.write("demo", arrays(1), round=0)
    shutil.copytree(place, tmp_path / "backup")
    with ModelStore.open(place, keys) as store:
        store.write("demo", arrays(2), round=1)
    shutil.rmtree(place)
    shutil.copytree(tmp_path / "backup", place)
    with ModelStore.open(place, keys) as store:
        with pytest.raises(StoreError, match="rolled back: demo is at version 1, version 2"):
            store.latest("demo", expected_version=2)


def test_a_store_is_compared_with_its_ledger_at_the_start(tmp_path: Path, keys: KeyService) -> None:
    place = tmp_path / "s"
    signer = ec.generate_private_key(ec.SECP256R1())
    with Ledger.open(tmp_path / "ledger.sqlite", signer) as ledger:
        with ModelStore.open(place, keys, record=ledger.append) as store:
            check_not_older(store, ledger)
            store.write("demo", arrays(1), round=0)
            shutil.copytree(place, tmp_path / "one", ignore=shutil.ignore_patterns("lock"))
            store.write("demo", arrays(2), round=1)
            check_not_older(store, ledger)
        with ModelStore.open(tmp_path / "one", keys) as store:
            with pytest.raises(StoreError, match="rolled back: demo is at version 1, version 2"):
                check_not_older(store, ledger)
        with ModelStore.open(tmp_path / "none", keys) as store:
            with pytest.raises(StoreError, match="version 2 of demo was written and is missing"):
                check_not_older(store, ledger)


def test_an_older_directory_is_refused_by_the_counter(tmp_path: Path, keys: KeyService) -> None:
    place, counter = tmp_path / "s", Counter()
    with ModelStore.open(place, keys, counter=counter) as store:
        store.write("demo", arrays(1), round=0)
    shutil.copytree(place, tmp_path / "backup")
    with ModelStore.open(place, keys, counter=counter) as store:
        store.write("demo", arrays(2), round=1)
    ModelStore.open(place, keys, counter=counter).close()
    shutil.rmtree(place)
    shutil.copytree(tmp_path / "backup", place)
    with pytest.raises(StoreError, match="rolled back: the store was written at count 9"):
        ModelStore.open(place, keys, counter=counter)
    with pytest.raises(StoreError, match="bound to a monotonic counter"):
        ModelStore.open(place, keys)
    with pytest.raises(StoreError, match="it is another counter"):
        ModelStore.open(place, keys, counter=Counter(2))
    with ModelStore.open(place, keys, counter=Counter(2), adopt_counter=True) as store:
        assert same(store.load("demo"), arrays(1))
        store.write("demo", arrays(2), round=1)
    ModelStore.open(place, keys, read_only=True).close()


def test_a_store_is_bound_to_a_counter_only_on_purpose(tmp_path: Path, keys: KeyService) -> None:
    place, counter = tmp_path / "s", Counter()
    ModelStore.open(place, keys).close()
    with pytest.raises(StoreError, match="not yet bound"):
        ModelStore.open(place, keys, counter=counter)
    with ModelStore.open(place, keys, counter=counter, adopt_counter=True) as store:
        store.write("demo", arrays(), round=0)
    ModelStore.open(place, keys, counter=counter).close()


def test_a_crash_between_writing_and_counting_is_mended(tmp_path: Path, keys: KeyService) -> None:
    place, counter = tmp_path / "s", Counter()
    with ModelStore.open(place, keys, counter=counter) as store:
        counter.broken = True
        with pytest.raises(OSError, match="does not answer"):
            store.write("demo", arrays(), round=0)
    counter.broken = False
    with ModelStore.open(place, keys, counter=counter) as store:
        assert same(store.load("demo"), arrays())
        store.write("demo", arrays(2), round=1)
    ModelStore.open(place, keys, counter=counter).close()


def test_a_catalogue_that_is_gone_or_damaged(tmp_path: Path, keys: KeyService) -> None:
    place = tmp_path / "s"
    with ModelStore.open(place, keys) as store:
        store.write("demo", arrays(), round=0)
    catalogue = place / "catalogue.sealed"
    raw = bytearray(catalogue.read_bytes())
    raw[-1] ^= 1
    catalogue.write_bytes(raw)
    with pytest.raises(StoreError, match=r"catalogue\.sealed: catalogue: was altered"):
        ModelStore.open(place, keys)
    catalogue.unlink()
    with pytest.raises(StoreError, match=r"catalogue\.sealed is missing, and demo\.1\."):
        ModelStore.open(place, keys)
    with pytest.raises(StoreError, match="there is no model store"):
        ModelStore.open(tmp_path / "none", keys, read_only=True)


# -- crashes and writers


def test_a_catalogue_without_sizes_and_owners_is_read_with_the_files(
    tmp_path: Path, keys: KeyService
) -> None:
    owner = X25519PrivateKey.generate().public_key().public_bytes_raw()
    with ModelStore.open(tmp_path / "store", keys, signer=SIGNER) as store:
        store.write("demo", {"w": np.ones(3)}, round=1, recipients=(owner,))
        store.write("demo", {"w": np.ones(3)}, round=2)
        now = store.versions("demo")
        assert [one.size for one in now] == [one.path.stat().st_size for one in now]
        assert [one.recipients for one in now] == [(owner,), ()]
        for facts in store.catalogue.models["demo"]["kept"].values():
            del facts["size"], facts["recipients"]
        store.initialize()
    with ModelStore.open(tmp_path / "store", keys) as store:
        assert "size" not in store.catalogue.models["demo"]["kept"]["1"]
        assert store.versions("demo") == now
        now[0].path.write_bytes(b"damaged")
        assert store.versions("demo")[0].size == 0
        with pytest.raises(StoreError, match="demo, version 1"):
            store.load("demo", 1)


def test_what_a_crash_left_is_removed_at_the_start(tmp_path: Path, keys: KeyService) -> None:
    place = tmp_path / "s"
    with ModelStore.open(place, keys) as store:
        kept = store.write("demo", arrays(), round=0)
    uncommitted = place / "models" / "demo.2.0000000000000000"
    shutil.copy(kept.path, uncommitted)
    half = place / "models" / ".demo.2.00.0123456789abcdef.tmp"
    half.write_bytes(b"half")
    (place / ".catalogue.sealed.0123456789abcdef.tmp").write_bytes(b"half")
    keys_half = tmp_path / "state" / "keys" / ".root.json.0123456789abcdef.tmp"
    keys_half.write_bytes(b"half")
    with ModelStore.open(place, keys, read_only=True):
        assert half.exists()
    with ModelStore.open(place, keys) as store:
        assert not uncommitted.exists()
        assert not half.exists()
        assert not keys_half.exists()
        assert same(store.load("demo"), arrays())
        assert sorted(path.name for path in place.iterdir()) == [
            "catalogue.sealed",
            "lock",
            "models",
        ]


def test_what_others_write_beside_the_catalogue_is_left_alone(
    tmp_path: Path, keys: KeyService
) -> None:
    """The ledger's head is sealed in this folder, by whichever thread appends an entry."""
    with ModelStore.open(tmp_path / "s", keys) as store:
        head = tmp_path / "s" / "ledger-head.sealed"
        with DurableFile(head) as writing:
            writing.write(b"newest")
            store.write("demo", arrays(), round=0)
            writing.commit()
        assert head.read_bytes() == b"newest"


def test_a_write_that_is_not_committed_does_not_count(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("demo", arrays(1), round=0)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(store._directory._file), "write", killed)
        with pytest.raises(KeyboardInterrupt):
            store.write("demo", arrays(2), round=1)
    assert [item.version for item in store.versions("demo")] == [1]
    assert len(list(store._directory.files.iterdir())) == 1
    assert store.write("demo", arrays(2), round=1).version == 2


def test_one_process_writes_at_a_time(tmp_path: Path, keys: KeyService, store: ModelStore) -> None:
    with pytest.raises(StoreError, match="another process writes"):
        ModelStore.open(tmp_path / "state" / "store", keys)
    store.write("demo", arrays(), round=0)
    with ModelStore.open(tmp_path / "state" / "store", keys, read_only=True) as reader:
        assert same(reader.load("demo"), arrays())
        with pytest.raises(StoreError, match="not open for writing"):
            reader.write("demo", arrays(), round=1)
    store.close()
    with pytest.raises(StoreError, match="not open for writing"):
        store.write("demo", arrays(), round=1)


def test_threads_may_write_at_once(store: ModelStore) -> None:
    def work(name: str) -> None:
        for number in range(5):
            store.write(name, {"x": np.full(10, number)}, round=number)

    threads = [threading.Thread(target=work, args=(f"job-{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.models()) == 4
    for name in store.models():
        assert [item.version for item in store.verify(name)] == [1, 2, 3, 4, 5]


def test_a_full_disk_keeps_the_latest_version(tmp_path: Path, keys: KeyService) -> None:
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        with ModelStore.open(mount / "s", keys) as store:
            store.write("demo", {"w": np.ones(1 << 20, np.uint8)}, round=0)
            with pytest.raises(StoreError, match="demo, version 2: no space left") as caught:
                store.write("demo", {"w": np.ones(8 << 20, np.uint8)}, round=1)
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.__cause__.errno == errno.ENOSPC
            assert caught.value.hint
            assert len(list((mount / "s" / "models").iterdir())) == 1
            assert [item.version for item in store.verify("demo")] == [1]
            assert store.write("demo", {"w": np.zeros(1 << 20, np.uint8)}, round=1).version == 2
            with pytest.raises(StoreError, match="no space left"):
                store.export("demo", _filled(mount) / "out")
            assert not (mount / "out").exists()
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def _filled(mount: Path) -> Path:
    free = shutil.disk_usage(mount).free - (256 << 10)
    (mount / "ballast").write_bytes(bytes(free))
    return mount


# -- export, owners, rotation, pruning


def test_an_export_is_private_canonical_and_whole(tmp_path: Path, store: ModelStore) -> None:
    store.write("demo", arrays(5), round=0, state=b"not weights")
    out = tmp_path / "model.safetensors"
    store.export("demo", out)
    assert out.stat().st_mode & 0o777 == 0o600
    assert hashlib.sha256(out.read_bytes()).digest() == Update(arrays(5)).digest
    read = safetensors.numpy.load_file(out)
    assert same({name: read[name] for name in arrays()}, arrays(5))
    with pytest.raises(StoreError, match="exists already"):
        store.export("demo", out)
    store.write("demo", arrays(6), round=1)
    store.export("demo", out, replace=True)
    assert hashlib.sha256(out.read_bytes()).digest() == Update(arrays(6)).digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "state"]


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, store: ModelStore) -> None:
    stored = store.write("demo", arrays(), round=0)
    with pytest.raises(StoreError, match="lies in the sealed store"):
        store.export("demo", tmp_path / "state" / "store" / "out")
    with pytest.raises(StoreError, match="no such file"):
        store.export("demo", tmp_path / "none" / "out")
    raw = bytearray(stored.path.read_bytes())
    raw[-1000] ^= 1
    stored.path.write_bytes(raw)
    with pytest.raises(StoreError, match="demo, version 1: tensor"):
        store.export("demo", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_the_owner_opens_a_finished_model_and_nobody_else(store: ModelStore) -> None:
    owner, other = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    public = owner.public_key().public_bytes_raw()
    store.write("demo", arrays(), round=3, recipients=[public])
    store.rotate("demo")
    path = store.latest("demo").path
    with open_sealed(path, PrivateKey(owner)) as reader:
        assert same(sealed.load(reader), arrays())
        assert reader.header.meta["job"] == "demo"
    with pytest.raises(UnsealError, match="not for this key"):
        open_sealed(path, PrivateKey(other))
    with pytest.raises(StoreError, match="X25519"):
        store.write("demo", arrays(), round=4, recipients=[b"short"])


def test_what_leaves_for_an_owner_is_signed_and_nothing_else_is(
    tmp_path: Path, keys: KeyService, store: ModelStore
) -> None:
    owner = X25519PrivateKey.generate()
    public = owner.public_key().public_bytes_raw()
    assert read_header(store.write("demo", arrays(), round=0).path).signer == b""
    store.write("demo", arrays(), round=1, recipients=[public])
    for _ in range(2):
        with open_sealed(store.latest("demo").path, PrivateKey(owner)) as reader:
            reader.check_signer({signer_digest(SIGNER.public_key)})
            assert reader.digest() == store.latest("demo").digest
        store.rotate("demo")
    store.close()
    with ModelStore.open(tmp_path / "state" / "store", keys) as bare:
        with pytest.raises(StoreError, match="a model for an owner must be signed"):
            bare.write("demo", arrays(), round=2, recipients=[public])
        with pytest.raises(StoreError, match="a model for an owner must be signed"):
            bare.rotate("demo")
        assert [item.version for item in bare.verify("demo")] == [1, 2]


def test_rotation_seals_anew_and_destroys_the_old_key(
    tmp_path: Path, keys: KeyService, store: ModelStore
) -> None:
    before = [store.write("demo", arrays(n), round=n, state=b"%d" % n) for n in (1, 2)]
    copies = [shutil.copy(item.path, tmp_path / item.path.name) for item in before]
    after = store.rotate("demo")
    assert [item.version for item in after] == [1, 2]
    assert {item.key for item in before}.isdisjoint(item.key for item in after)
    assert not any(item.path.exists() for item in before)
    assert same(store.load("demo", 1), arrays(1))
    assert store.state("demo", 2) == b"2"
    for copy in copies:
        with pytest.raises(UnsealError, match="no longer exists"):
            open_sealed(Path(copy), keys)


def test_a_rotation_that_fails_loses_nothing(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        store.write("demo", arrays(number), round=number)
    written = SealedWriter

    def full(path: Path, **rest: Any) -> Any:
        if path.name.startswith("demo.2"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(path, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(server.store.model_files, "SealedWriter", full)
        with pytest.raises(StoreError, match="version 2: no space left"):
            store.rotate("demo")
    assert same(store.load("demo", 1), arrays(1))
    assert same(store.load("demo", 2), arrays(2))
    store.rotate("demo")
    assert same(store.load("demo", 2), arrays(2))


def test_pruning_keeps_the_latest(store: ModelStore) -> None:
    for number in range(1, 6):
        store.write("demo", arrays(number), round=number)
    assert store.prune("demo", keep=2) == 3
    assert [item.version for item in store.versions("demo")] == [4, 5]
    assert len(list(store._directory.files.iterdir())) == 2
    assert store.write("demo", arrays(6), round=6).version == 6
    with pytest.raises(ValueError, match="always kept"):
        store.prune("demo", keep=0)
