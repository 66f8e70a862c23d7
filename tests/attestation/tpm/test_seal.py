"""Sealing to a TPM: what is sealed here opens here, now, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from attestation.attesters.software_tpm import SoftwareTpm
from attestation.attesters.tpm2_tools import Tpm2Tools
from attestation.errors import AttesterError, UnsealError
from attestation.tpm.seal import TpmCounter, TpmSeal

pytestmark = pytest.mark.swtpm


def extend(tpm: SoftwareTpm, pcr: int) -> None:
    with Tpm2Tools(tpm.tcti).workspace() as work:
        work.run("pcrextend", "-Q", f"{pcr}:sha256={'11' * 32}")


def restart(tpm: SoftwareTpm) -> None:
    tpm.stop()
    tpm.start()


def test_a_secret_opens_until_its_state_changes(fresh_tpm: SoftwareTpm, tmp_path: Path) -> None:
    seal = TpmSeal(fresh_tpm.tcti, tmp_path / "keys")
    secret = os.urandom(32)
    blob = seal.seal(secret)
    assert secret not in blob
    assert seal.unseal(blob) == secret
    extend(fresh_tpm, 9)
    assert seal.unseal(blob) == secret
    extend(fresh_tpm, 14)
    with pytest.raises(UnsealError, match="PCRs 7, 14") as caught:
        seal.unseal(blob)
    assert "recovery key" in caught.value.hint
    restart(fresh_tpm)
    assert seal.unseal(blob) == secret
    extend(fresh_tpm, 7)
    with pytest.raises(UnsealError):
        seal.unseal(blob)


@pytest.mark.parametrize("size", [1, 32, 33, 128])
def test_secrets_of_every_size_come_back(
    software_tpm: SoftwareTpm, tmp_path: Path, size: int
) -> None:
    seal = TpmSeal(software_tpm.tcti, tmp_path, pcrs=(0,))
    secret = bytes(range(size))
    assert seal.unseal(seal.seal(secret)) == secret


def test_another_tpm_opens_nothing(
    software_tpm: SoftwareTpm, fresh_tpm: SoftwareTpm, tmp_path: Path
) -> None:
    blob = TpmSeal(software_tpm.tcti, tmp_path, pcrs=(0,)).seal(b"secret")
    with pytest.raises(UnsealError, match="this TPM did not seal it"):
        TpmSeal(fresh_tpm.tcti, tmp_path, pcrs=(0,)).unseal(blob)


def test_a_blob_for_other_registers_is_refused(software_tpm: SoftwareTpm, tmp_path: Path) -> None:
    blob = TpmSeal(software_tpm.tcti, tmp_path, pcrs=(0,)).seal(b"secret")
    with pytest.raises(UnsealError, match="required"):
        TpmSeal(software_tpm.tcti, tmp_path, pcrs=(0, 7)).unseal(blob)
    dressed_up = blob.replace(b"\x01\x00", b"\x01\x07", 1)
    with pytest.raises(UnsealError):
        TpmSeal(software_tpm.tcti, tmp_path, pcrs=(7,)).unseal(dressed_up)


def test_altered_and_truncated_blobs_are_refused(software_tpm: SoftwareTpm, tmp_path: Path) -> None:
    seal = TpmSeal(software_tpm.tcti, tmp_path, pcrs=(0,))
    blob = seal.seal(b"secret")
    for position in range(0, len(blob), 9):
        flipped = bytearray(blob)
        flipped[position] ^= 1
        with pytest.raises(UnsealError):
            seal.unseal(bytes(flipped))
    for length in range(0, len(blob), 3):
        with pytest.raises(UnsealError):
            seal.unseal(blob[:length])
    with pytest.raises(UnsealError, match="too many"):
        seal.unseal(blob + b"\0")
    assert seal.unseal(blob) == b"secret"


def test_a_tpm_that_is_not_there_is_another_error(tmp_path: Path) -> None:
    seal = TpmSeal(f"swtpm:path={tmp_path}/none", tmp_path)
    with pytest.raises(AttesterError):
        seal.seal(b"secret")
    blob = b"FLTS\x01\x02\x07\x0e\0\x03\0\x01p\0\x03\0\x01q"
    with pytest.raises(AttesterError):
        seal.unseal(blob)


def test_impossible_arguments_are_refused(tmp_path: Path) -> None:
    tcti = f"swtpm:path={tmp_path}/none"
    for pcrs in ((), (24,), (-1,)):
        with pytest.raises(ValueError, match="PCRs"):
            TpmSeal(tcti, tmp_path, pcrs=pcrs)
    for secret in (b"", bytes(129)):
        with pytest.raises(ValueError, match="1 to 128"):
            TpmSeal(tcti, tmp_path).seal(secret)
    with pytest.raises(ValueError, match="NV index"):
        TpmCounter(tcti, 0x81000000)
    with pytest.raises(ValueError, match="TCTI"):
        TpmSeal("", tmp_path)


def test_nothing_secret_stays_in_the_file_system(
    software_tpm: SoftwareTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    seal = TpmSeal(software_tpm.tcti, tmp_path / "keys", pcrs=(0,))
    seal.unseal(seal.seal(b"secret"))
    assert list(scratch.iterdir()) == []
    assert list((tmp_path / "keys").iterdir()) == []
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700


def test_a_counter_only_goes_up(fresh_tpm: SoftwareTpm) -> None:
    counter = TpmCounter(fresh_tpm.tcti)
    with pytest.raises(AttesterError, match="no counter"):
        counter.read()
    first = counter.increment()
    assert counter.create() == first
    assert [counter.increment() for _ in range(3)] == [first + 1, first + 2, first + 3]
    restart(fresh_tpm)
    again = TpmCounter(fresh_tpm.tcti)
    assert again.read() == first + 3
    with Tpm2Tools(fresh_tpm.tcti).workspace() as work:
        work.run("nvundefine", "-Q", "-C", "o", "0x01500f1e")
    assert again.increment() > first + 3


def test_an_index_in_use_for_something_else_is_left_alone(fresh_tpm: SoftwareTpm) -> None:
    with Tpm2Tools(fresh_tpm.tcti).workspace() as work:
        work.run(
            *("nvdefine", "-Q", "0x01500f20", "-C", "o", "-s", "8"),
            *("-a", "ownerread|ownerwrite"),
        )
    counter = TpmCounter(fresh_tpm.tcti, 0x01500F20)
    for action in (counter.create, counter.increment):
        with pytest.raises(AttesterError, match="not a counter"):
            action()
