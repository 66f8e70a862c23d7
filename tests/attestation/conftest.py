"""What tests of attestation share: real evidence, where it is, and a real software TPM."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestation.attesters.software_tpm import SoftwareTpm

_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The directory of real evidence (``FEDLEARN_VECTORS``)."""
    default = str(_ROOT.parent / "shared" / "vectors")
    found = Path(os.environ.get("FEDLEARN_VECTORS", default))
    if not found.is_dir():
        pytest.skip(f"no real evidence at {found}; set FEDLEARN_VECTORS")
    return found


@pytest.fixture(scope="module")
def software_tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    """A software TPM that the tests of one module share, in the order in which they run."""
    if reason := SoftwareTpm.available():
        pytest.skip(reason)
    with SoftwareTpm(tmp_path_factory.mktemp("tpm") / "state") as tpm:
        yield tpm


@pytest.fixture
def fresh_tpm(tmp_path: Path) -> Iterator[SoftwareTpm]:
    """A software TPM of this test alone."""
    if reason := SoftwareTpm.available():
        pytest.skip(reason)
    with SoftwareTpm(tmp_path / "tpm-state") as tpm:
        yield tpm
