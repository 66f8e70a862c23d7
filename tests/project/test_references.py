"""Every file, module, class and function that a text of the tree names exists.

Texts are the documents, and the docstrings, comments and templates of all folders. What a reader
is to write does not count: code between fences, and paths with ``NAME`` in them.
"""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path

import pytest

from fedlearn.wire import fedlearn_pb2

ROOT = Path(__file__).parents[2]
HERE = "tests/project/test_references.py"
PACKAGES = ("attestation", "benchmarks", "edge", "fedlearn", "server", "tests", "tools")
FOLDERS = (*PACKAGES, "docs", "helm", "images")
FOREIGN = ("docs/adr/0000-template.md", "tests/project/test_threat_model.py", "tests/vectors/")
"""They name what exists elsewhere or nowhere."""
SUFFIXES = {".md", ".proto", ".py", ".sh", ".toml", ".tpl", ".txt", ".yaml"}

FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
PATH = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)(?:::\w+)?`")
MODULE = re.compile(r"`(\w+\.py)`")
DOTTED = re.compile(rf"`((?:{'|'.join(PACKAGES)})(?:\.\w+)+)(?:\(\))?`")
ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(?:[^`<]*<)?~?([\w.]+)>?`")
CLASS = re.compile(r"`([A-Z][a-z0-9]+(?:[A-Z][a-z0-9]+)+)`")

USERS = {"server.toml", "edge.lock"}
"""Files of a user, named like a member of a package."""
READERS = {"deal.py", "judge.py"}
"""Modules that a tutorial has its reader write."""
SCOPE = {"fedlearn.caller", "fedlearn.keep", "fedlearn.length"}
"""Keys of the ASGI scope that the fleet listener hands on."""


def texts() -> list[str]:
    files = [*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*"))]
    names = {path.relative_to(ROOT).as_posix() for path in files if path.suffix in SUFFIXES}
    return sorted(name for name in names - {HERE} if not name.startswith(FOREIGN))


@cache
def content(text: str) -> str:
    return FENCED.sub("", (ROOT / text).read_text(encoding="utf-8"))


def missing(content: str) -> set[str]:
    """Return what a text names of the tree and is not there."""
    paths = {path for path in PATH.findall(content) if "NAME" not in path}
    names = set(DOTTED.findall(content)) - USERS - SCOPE
    gone = {path for path in paths if not (ROOT / path).exists()}
    return gone | {name for name in names if not exists(name)}


def missing_roles(text: str, content: str) -> set[str]:
    """Return the targets of the roles in a module's docstrings that Sphinx would not find."""
    module = text.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return {
        name
        for name in ROLE.findall(content)
        if not exists(name.lstrip(".") if name[0] != "." else module.split(".")[0] + name)
        and not exists(f"{module}.{name}")
        and not any(exists(f"{module}.{each}.{name}") for each in classes(text))
    }


@cache
def classes(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"^class (\w+)", (ROOT / text).read_text(encoding="utf-8"), re.M))


@cache
def exists(name: str) -> bool:
    """Return whether a dotted name is a module, an attribute of one, or a contract."""
    parts = name.split(".")
    if parts[:2] == ["fedlearn", "v1"]:
        contracts = fedlearn_pb2.DESCRIPTOR
        return len(parts) == 2 or parts[2] in {
            *contracts.message_types_by_name,
            *contracts.services_by_name,
            *contracts.enum_types_by_name,
        }
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        try:
            found: object = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise
            continue
        return has(found, parts[length:])
    return False


def has(found: object, attributes: list[str]) -> bool:
    for attribute in attributes:
        if not hasattr(found, attribute):
            return attribute in getattr(found, "__annotations__", {})
        found = getattr(found, attribute)
    return True


@cache
def words() -> frozenset[str]:
    """Return every word of what is not a document."""
    return frozenset(
        word
        for text in texts()
        if not text.endswith(".md")
        for word in re.findall(r"\w+", (ROOT / text).read_text(encoding="utf-8"))
    )


@pytest.mark.parametrize("folder", ["", *FOLDERS])
def test_what_a_text_names_exists(folder: str) -> None:
    found = [text for text in texts() if folder == text.rpartition("/")[0].split("/")[0]]
    assert found
    assert {text: gone for text in found if (gone := missing(content(text)))} == {}


@pytest.mark.parametrize("package", ["attestation", "edge", "fedlearn", "server"])
def test_what_a_role_names_exists(package: str) -> None:
    found = [text for text in texts() if text.startswith(f"{package}/") and text.endswith(".py")]
    assert found
    assert {text: gone for text in found if (gone := missing_roles(text, content(text)))} == {}


def test_modules_and_classes_that_documents_name_exist() -> None:
    modules = {Path(text).name for text in texts()}
    unknown = {
        (text, name)
        for text in texts()
        if text.endswith(".md")
        for name in (*MODULE.findall(content(text)), *CLASS.findall(content(text)))
        if name not in modules | READERS | words()
    }
    assert unknown == set()


def test_what_is_gone_is_found() -> None:
    assert missing(f"`{HERE}`, `docs/`, ``attestation/errors.py``, `tests/NAME.py`") == set()
    assert missing("`server/nowhere.py`, ``docs/nowhere.md``, `tests/nowhere.py::test_x`") == {
        "server/nowhere.py",
        "docs/nowhere.md",
        "tests/nowhere.py",
    }
    assert (
        missing("`server.toml`, `attestation.binding.Binding.nonce`, ``fedlearn.v1.Gate``") == set()
    )
    assert missing("`fedlearn.v1.Nothing`, `server.config.Nothing`, `edge.nowhere.far()`") == {
        "fedlearn.v1.Nothing",
        "server.config.Nothing",
        "edge.nowhere.far",
    }
    errors = "attestation/errors.py"
    assert missing_roles(errors, ":class:`EvidenceError`, :attr:`field`, :func:`json.dumps`") == {
        "field"
    }
    assert missing_roles(errors, ":class:`~.errors.EvidenceError`, :mod:`server.nowhere`") == {
        "server.nowhere"
    }
    assert missing_roles(errors, ":func:`text <edge.nowhere>`, :class:`Nothing`") == {
        "edge.nowhere",
        "Nothing",
    }
