"""What tests of attestation share: real evidence, where it is, and a real software TPM."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from attestation.attesters.software_tpm import SoftwareTpm

_ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(_ROOT / "tests/vectors"))


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


def _load_fake(name: str) -> ModuleType:
    qualified = f"fedlearn_test_fakes_{name}"
    if qualified not in sys.modules:
        spec = importlib.util.spec_from_file_location(qualified, _ROOT / f"tests/fakes/{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[qualified] = module
        spec.loader.exec_module(module)
    return sys.modules[qualified]


@pytest.fixture(scope="session")
def paper_tpm() -> ModuleType:
    """The module ``tests/fakes/paper_tpm.py``: TPM structures around a key of our own."""
    return _load_fake("paper_tpm")
