"""Base weights at a site: the file of the job, and every other one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from fedlearn.errors import JobError
from fedlearn.training import base_weights

DATA = save({"w": torch.arange(3.0)})
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.mark.parametrize("digest", [DIGEST, f"sha256:{DIGEST}"])
def test_the_file_of_the_job_is_read(tmp_path: Path, digest: str) -> None:
    (tmp_path / "base.safetensors").write_bytes(DATA)
    found = base_weights(tmp_path / "base.safetensors", digest)
    assert found["w"].tolist() == [0.0, 1.0, 2.0]


def test_a_changed_file_is_refused_with_both_digests(tmp_path: Path) -> None:
    changed = bytes([*DATA[:-1], DATA[-1] ^ 1])
    (tmp_path / "base.safetensors").write_bytes(changed)
    with pytest.raises(JobError, match=hashlib.sha256(changed).hexdigest()) as refused:
        base_weights(tmp_path / "base.safetensors", DIGEST)
    assert DIGEST in str(refused.value)


def test_what_is_no_file_no_digest_and_no_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    with pytest.raises(JobError, match="cannot be read: No such file"):
        base_weights(path, DIGEST)
    with pytest.raises(JobError, match="is not a SHA-256"):
        base_weights(path, DIGEST.upper())
    path.write_bytes(b"pickled")
    with pytest.raises(JobError, match="not a safetensors file"):
        base_weights(path, hashlib.sha256(b"pickled").hexdigest())
