"""The root key under a real (software) TPM, and a store that its counter guards."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.attesters.software_tpm import SoftwareTpm
from attestation.tpm.seal import TpmCounter, TpmSeal
from fedlearn.errors import StoreError
from server.keys.key_protectors import RecoveryKey, TpmPolicy
from server.keys.service import KeyService
from server.store.models import ModelStore

pytestmark = pytest.mark.swtpm


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[SoftwareTpm]:
    if reason := SoftwareTpm.available():
        pytest.skip(reason)
    with SoftwareTpm(tmp_path / "tpm") as running:
        yield running


def policy(tpm: SoftwareTpm, tmp_path: Path) -> TpmPolicy:
    return TpmPolicy(TpmSeal(tpm.tcti, tmp_path / "work", (16,)))


def test_the_machine_opens_its_own_root_key_and_no_other_does(
    tmp_path: Path, tpm: SoftwareTpm
) -> None:
    recovery = RecoveryKey.of(X25519PrivateKey.generate())
    service = KeyService.create(
        tmp_path / "keys", [policy(tpm, tmp_path), RecoveryKey(recovery.public)]
    )
    service.keep("ca", b"secret")
    again = KeyService.open(tmp_path / "keys", [policy(tpm, tmp_path)])
    assert again.secret("ca") == b"secret"
    with SoftwareTpm(tmp_path / "other") as other:
        with pytest.raises(StoreError, match="tpm-policy: this TPM did not seal it"):
            KeyService.open(tmp_path / "keys", [policy(other, tmp_path)])
        moved = KeyService.open(tmp_path / "keys", [policy(other, tmp_path), recovery])
        assert moved.id == service.id


def test_an_older_copy_of_the_disk_is_refused(tmp_path: Path, tpm: SoftwareTpm) -> None:
    keys = KeyService.create(tmp_path / "keys", [policy(tpm, tmp_path)])
    counter = TpmCounter(tpm.tcti)
    place = tmp_path / "store"
    with ModelStore.open(place, keys, counter=counter) as store:
        store.write("demo", {"w": np.zeros(3)}, round=0)
    shutil.copytree(place, tmp_path / "backup")
    with ModelStore.open(place, keys, counter=counter) as store:
        store.write("demo", {"w": np.ones(3)}, round=1)
    with ModelStore.open(place, keys, counter=counter) as store:
        assert store.latest("demo").version == 2
    shutil.rmtree(place)
    shutil.copytree(tmp_path / "backup", place)
    with pytest.raises(StoreError, match="rolled back: the store was written at count"):
        ModelStore.open(place, keys, counter=counter)
