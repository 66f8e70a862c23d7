"""Applications that would replace a package of our packages are refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from fedlearn.app.checks import MAX_BUNDLE_BYTES, OUR_PACKAGES, check_bundle, check_folder
from fedlearn.errors import JobError

PROJECT = """
[project]
name = "mine"
version = "1.0.0"
[tool.flwr.app.components]
serverapp = "mine_app.server_app:app"
clientapp = "mine_app.client_app:app"
[tool.flwr.app.config]
rate = 0.5
[tool.flwr.app.config.deep]
er = 1
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    (folder / "mine_app").mkdir(parents=True)
    (folder / "mine_app/__init__.py").write_text("")
    (folder / "mine_app/server.py").write_text("")  # below a package, it harms nobody
    (folder / "pyproject.toml").write_text(PROJECT)
    return folder


def _bundle(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_an_application_is_accepted_as_folder_and_as_bundle(app: Path) -> None:
    found = check_folder(app)
    assert (found.name, found.version) == ("mine", "1.0.0")
    assert found.defaults == {"rate": 0.5, "deep.er": 1}
    assert (
        check_bundle(_bundle({"pyproject.toml": PROJECT.encode(), "mine_app/a.py": b""})) == found
    )


@pytest.mark.parametrize("name", sorted(OUR_PACKAGES))
@pytest.mark.parametrize(
    "form", ["{}.py", "{}/__init__.py", "{}/x.py", "{}.cpython-311-x.so", "{}.PY"]
)
def test_code_named_like_ours_is_refused(app: Path, name: str, form: str) -> None:
    path = app / form.format(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    with pytest.raises(JobError, match="would replace a package"):
        check_folder(app)
    files = {"pyproject.toml": PROJECT.encode(), form.format(name): b""}
    with pytest.raises(JobError, match="would replace a package"):
        check_bundle(_bundle(files))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mine_app.server_app:app", "server.app:app", "is in 'server', a package of fedlearn"),
        ("mine_app.server_app:app", "nothing", 'must be "module:attribute"'),
        ("mine_app.server_app:app", "a:b c", 'must be "module:attribute"'),
        ("[project]", "[projekt]", "needs project.name"),
        ("clientapp", "clientap", "serverapp and clientapp"),
        ('"mine"', "3", "must be text"),
        ("[project]", "[project", "is not TOML"),
    ],
)
def test_a_wrong_project_is_named(app: Path, old: str, new: str, message: str) -> None:
    (app / "pyproject.toml").write_text(PROJECT.replace(old, new, 1))
    with pytest.raises(JobError, match=message.replace(".", r"\.")) as caught:
        check_folder(app)
    assert "pyproject.toml" in str(caught.value)


def test_what_is_no_application_is_refused(app: Path) -> None:
    with pytest.raises(JobError, match="does not exist"):
        check_folder(app / "gone")
    with pytest.raises(JobError, match="is not a directory"):
        check_folder(app / "pyproject.toml")
    with pytest.raises(JobError, match=r"no pyproject\.toml"):
        check_folder(app / "mine_app")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a Flower app bundle"),
        (b"PK\x03\x04" + bytes(100), "is not a Flower app bundle"),
        (_bundle({"a.py": b""}), r"no pyproject\.toml"),
        (_bundle({"pyproject.toml": b"", "../x.py": b""}), "leaves it"),
        (_bundle({"pyproject.toml": b"", "/x.py": b""}), "leaves it"),
        (_bundle({"pyproject.toml": b"", "a/../../x.py": b""}), "leaves it"),
        (_bundle({"pyproject.toml": b"", "a\\b.py": b""}), "leaves it"),
        (_bundle({"pyproject.toml": bytes(MAX_BUNDLE_BYTES + 1)}), "unpacks to more"),
        (_bundle({"pyproject.toml": b"#" * 2**21}), "too large"),
        (_bundle({"pyproject.toml": b"\xff"}), "is not UTF-8"),
        (_bundle({"pyproject.toml": b"[project"}), "is not TOML"),
        (_bundle({f"a{i}": b"" for i in range(10_001)}), "more than 10000 files"),
        (bytes(MAX_BUNDLE_BYTES + 1), "at most"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_bundle_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(JobError, match=message):
        check_bundle(data)
