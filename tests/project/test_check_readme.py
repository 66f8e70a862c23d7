"""The check of written commands finds what would not work, by line and flag."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools/check_readme.py"


def _check(root: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, str(TOOL), str(root)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def _page(root: Path, text: str) -> None:
    (root / "README.md").write_text(text)
    (root / "Makefile").write_text(".PHONY: demo\ndemo: x ## Run\nx y:\n\techo\nV := 1\n")


GOOD = """
Run `fedlearn job validate job.toml --json` or `make demo`. A pattern: `fedlearn x <a>`.

```console
$ fedlearn job init my-job && cd my-job
$ FEDLEARN_TRACE=1 sudo .venv/bin/fedlearn job submit job.toml \\
    --operator DIR --follow | tee log    # with a comment
$ fedlearn doctor --server=server.toml > out
$ fedlearn job logs NAME [--follow]
$ make x PYTHON=python3.12
```

```python
fedlearn nonsense
```
"""


def test_what_works_is_silent(tmp_path: Path) -> None:
    _page(tmp_path, GOOD)
    code, out, err = _check(tmp_path)
    assert (code, err) == (0, "")
    assert out == "7 commands looked at, 0 that would not work\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fedlearn jib", "fedlearn has no command 'jib'"),
        ("fedlearn job valdate x", "fedlearn job has no command 'valdate'"),
        ("$ fedlearn job submit --folow", "fedlearn job submit has no flag --folow"),
        ("fedlearn job submit --operator", "--operator needs a value"),
        ("fedlearn job status a b", "takes 1 arguments, not 2"),
        ("echo x && fedlearn job validate --strict=1", "has no flag --strict"),
        ("make dmo", "the Makefile has no target 'dmo'"),
        ("fedlearn job \\\n  validate \\\n  --jsn", "has no flag --jsn"),
    ],
)
def test_what_would_not_work_is_named_by_line(tmp_path: Path, line: str, words: str) -> None:
    _page(tmp_path, f"# Title\n\n```bash\n{line}\n```\n")
    code, _, err = _check(tmp_path)
    assert code == 1
    assert err.startswith("README.md:4: ")
    assert words in err
    assert "Traceback" not in err


def test_spans_pages_and_hints_are_read(tmp_path: Path) -> None:
    _page(tmp_path, "Run `fedlearn nope`.\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.md").write_text("~~~sh\nfedlearn-server rnu\n~~~\n")
    (tmp_path / "server").mkdir()
    (tmp_path / "server/x.py").write_text('hint = f"`fedlearn job resum {name}`"\n')
    code, out, err = _check(tmp_path)
    assert code == 1
    assert out.startswith("3 commands looked at, 3 that")
    assert [line.split(": ")[0] for line in err.splitlines()] == [
        "README.md:1",
        "docs/a.md:2",
        "server/x.py:1",
    ]
