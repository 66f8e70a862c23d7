"""``import fedlearn``: its names, what it costs, and what type checkers see."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import fedlearn

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("click", "cryptography", "flwr", "grpc", "numpy", "pandas", "rich", "torch")
USE = """\
import fedlearn

job = fedlearn.Job.load("job.toml")
with fedlearn.connect("login") as coordinator:
    run: fedlearn.Run = coordinator.submit(job)
    result: fedlearn.Result = run.follow()
reveal_type(fedlearn.connect)
reveal_type(run.status)
fedlearn.submit(job)
"""


def _python(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=cwd, check=False, timeout=240
    )


def test_an_import_loads_nothing_but_itself() -> None:
    code = f"import sys, fedlearn; print([name for name in {HEAVY} if name in sys.modules])"
    assert _python("-c", code, cwd=ROOT).stdout == "[]\n"


def test_an_import_takes_less_than_200_ms() -> None:
    def seconds(code: str) -> float:
        start = time.perf_counter()
        assert _python("-c", code, cwd=ROOT).returncode == 0
        return time.perf_counter() - start

    assert min(seconds("import fedlearn") for _ in range(5)) < 0.2


def test_every_public_name_is_there_and_documented() -> None:
    for name in fedlearn.__all__:
        value = getattr(fedlearn, name)
        assert name == "__version__" or value.__doc__
    assert set(fedlearn.__all__) <= set(dir(fedlearn))
    with pytest.raises(AttributeError, match="no attribute 'submit'"):
        fedlearn.submit  # type: ignore[attr-defined]  # noqa: B018


def test_type_checkers_see_the_names(tmp_path: Path) -> None:
    use = tmp_path / "use.py"
    use.write_text(USE)
    # With the settings and the cache of `make types`, so that little is checked again.
    done = _python("-m", "mypy", str(use), cwd=ROOT)
    notes = [note.partition("use.py:")[2] for note in done.stdout.splitlines()]
    assert any(note.startswith("7: ") and "api.connection.Connection" in note for note in notes)
    assert any(note.startswith("8: ") and "state.JobStatus" in note for note in notes)
    assert [note for note in notes if " error: " in note] == [
        '9: error: Module has no attribute "submit"  [attr-defined]'
    ]
