"""Images: what they are made of, what is in them, and that two builds are one."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "registry.example/fedlearn/edge@sha256:" + "ab" * 32


def _tool(name: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / name), *words],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **env},
    )


# --- the lists ----------------------------------------------------------------------------


def test_locks_fit_what_the_project_asks_for() -> None:
    done = _tool("lock_images.py", "--check")
    assert done.returncode == 0, done.stderr


def _lock(image: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in (ROOT / f"images/{image}.lock").read_text().splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r"([a-z0-9-]+)==\S+ --hash=sha256:[0-9a-f]{64}", line)
            assert match, line
            assert match[1] not in found
            found[match[1]] = line
    return found


def test_every_wheel_has_one_version_and_one_hash() -> None:
    images = [path.stem for path in sorted((ROOT / "images").glob("*.lock"))]
    assert images == ["client", "edge", "server"]
    lines: dict[str, set[str]] = {}
    for image in images:
        for name, line in _lock(image).items():
            lines.setdefault(name, set()).add(line)
    assert {name: found for name, found in lines.items() if len(found) > 1} == {}


@pytest.mark.parametrize(
    ("image", "has"),
    [("server", {"uvicorn", "httptools"}), ("edge", {"kubernetes"}), ("client", {"torch"})],
)
def test_an_image_has_its_own_extra_and_not_those_of_others(image: str, has: set[str]) -> None:
    special = {"uvicorn", "httptools", "kubernetes", "torch", "matplotlib", "scikit-learn"}
    names = set(_lock(image))
    assert names & special == has
    assert not names & {"uv", "sqlalchemy", "alembic", "pytest", "pip"}
    assert {"flwr", "cryptography", "dcap-qvl", "signxml"} <= names


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("image", ["server", "edge", "client"])
def test_what_an_image_runs_needs_no_more_than_its_list(image: str, tmp_path: Path) -> None:
    """The wheels of the list alone, in an environment of the images' Python."""
    here = sys.version_info[:2] == (3, 11)
    interpreter = sys.executable if here else shutil.which("python3.11")
    assert interpreter, "install CPython 3.11, for which the lists are"
    script = (ROOT / "images/build.sh").read_text()
    modules = re.search(rf'^ *{image}\) modules="([^"]+)"', script, re.MULTILINE)
    assert modules
    subprocess.run([interpreter, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run(
        [*install, "--no-deps", "--require-hashes", "-r", str(ROOT / f"images/{image}.lock")],
        check=True,
    )
    done = subprocess.run(
        [python, "-c", f"import {modules[1]}; from dp_accounting import pld, rdp"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["server", "edge"])
def test_containerfiles_fetch_nothing_and_end_as_nobody(name: str) -> None:
    text = (ROOT / f"images/{name}.Containerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if line.startswith("RUN")] == ["RUN sh /install.sh /image.lock"]
    assert not [line for line in lines if line.startswith("ADD")]
    assert "USER 65532:65532" in lines
    assert all("--no-index" in line for line in _pip_lines())


def _pip_lines() -> list[str]:
    text = (ROOT / "images/install.sh").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if "pip install" in line]


# --- what is in one -----------------------------------------------------------------------


STATUS = """\
Package: libc6
Status: install ok installed
Version: 2.36-9+deb12u14
Architecture: amd64

Package: removed
Status: deinstall ok config-files
Version: 1
Architecture: amd64
"""


def _metadata(name: str, version: str) -> str:
    return f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\nLicense-Expression: MIT\n\n"


def _layer(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return gzip.compress(buffer.getvalue(), mtime=0)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """An OCI layout of two layers; the second replaces one package and removes another."""
    folder = tmp_path / "server"
    site = "opt/fedlearn/lib/python3.11/site-packages"

    def put(data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        path = folder / "blobs/sha256" / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    layers = [
        {
            "var/lib/dpkg/status": STATUS,
            f"{site}/a-1.dist-info/METADATA": _metadata("A.Package", "1"),
            f"{site}/b-1.dist-info/METADATA": _metadata("b", "1"),
        },
        {
            f"{site}/.wh.b-1.dist-info": "",
            f"{site}/c-2.dist-info/METADATA": _metadata("c", "2"),
        },
    ]
    kind = "application/vnd.oci.image.layer.v1.tar+gzip"
    config = {"config": {"User": "65532:65532"}, "created": "2024-01-01T00:00:00Z"}
    manifest = {
        "config": put(json.dumps(config).encode()),
        "layers": [{**put(_layer(files)), "mediaType": kind} for files in layers],
    }
    index = {"manifests": [put(json.dumps(manifest).encode())]}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def test_a_bill_of_materials_has_what_the_last_layer_leaves(layout: Path) -> None:
    done = _tool("sbom.py", str(layout), SOURCE_DATE_EPOCH="1700000000")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["bomFormat"] == "CycloneDX"
    assert document["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"
    assert [one["purl"] for one in document["components"]] == [
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64",
        "pkg:pypi/a-package@1",
        "pkg:pypi/c@2",
    ]
    assert document["components"][1]["licenses"] == [{"expression": "MIT"}]
    again = _tool("sbom.py", str(layout), SOURCE_DATE_EPOCH="1700000000")
    assert again.stdout == done.stdout


def test_digests_are_those_of_the_bytes(layout: Path) -> None:
    done = _tool("image_digests.py", str(layout), "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    index = json.loads((layout / "index.json").read_text())
    assert found["digest"] == index["manifests"][0]["digest"]
    assert found["user"] == "65532:65532"
    assert len(found["layers"]) == 2


def test_digests_are_stamped_into_the_charts(layout: Path, tmp_path: Path) -> None:
    charts = tmp_path / "helm"
    shutil.copytree(ROOT / "helm", charts)
    for name in ("edge", "client"):
        shutil.copytree(layout, layout.parent / name)
    layouts = [str(layout.parent / name) for name in ("server", "edge", "client")]
    done = _tool("image_digests.py", "--stamp", str(charts), *layouts)
    assert done.returncode == 0, done.stderr
    digest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    server, edge = (
        yaml.safe_load((charts / f"fedlearn-{name}/values.yaml").read_text())
        for name in ("server", "edge")
    )
    assert server["image"]["digest"] == edge["image"]["digest"] == digest
    assert edge["client"]["image"]["digest"] == digest
    assert edge["ccnp"]["image"]["digest"] == ""
    lines = (charts / "fedlearn-edge/values.yaml").read_text().splitlines()
    before = (ROOT / "helm/fedlearn-edge/values.yaml").read_text().splitlines()
    assert sum(new != old for new, old in zip(lines, before, strict=True)) == 2


def test_another_image_has_no_place_in_the_charts(layout: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(layout, other)
    done = _tool("image_digests.py", "--stamp", str(ROOT / "helm"), str(other))
    assert done.returncode == 1
    assert "'other' is none of server, edge, client" in done.stderr


def test_an_image_that_was_altered_is_refused(layout: Path) -> None:
    (found,) = json.loads(_tool("image_digests.py", str(layout), "--json").stdout)
    path = layout / "blobs" / found["layers"][0].replace(":", "/")
    path.write_bytes(path.read_bytes() + b"x")
    done = _tool("image_digests.py", str(layout))
    assert done.returncode == 1
    assert "has the SHA-256" in done.stderr


# --- reference values ---------------------------------------------------------------------


def test_reference_values_are_a_policys() -> None:
    from attestation.policy.parse import parse_policy
    from edge.kube.initdata import initdata_document, initdata_values

    bundle = bytes(32)
    done = _tool("image_digests.py", "--client", IMAGE, "--bundle", bundle.hex(), "--tee", "snp")
    assert done.returncode == 0, done.stderr
    text = f'version = 1\nname = "p"\naccept = ["snp", "tdx"]\n{done.stdout}'
    policy = parse_policy(text.encode())
    wanted = initdata_values(image=IMAGE, bundle=bundle, tee="snp", name=f"initdata of {IMAGE}")
    assert set(policy.references) == set(wanted)
    document = initdata_document(image=IMAGE, bundle=bundle, tee="snp")
    digests = {value.claim: value.value for value in policy.references}
    assert digests["host_data"] == hashlib.sha256(document).digest()


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        ((), "name an OCI layout"),
        (("--client", IMAGE), "go together"),
        (("--client", "registry.example/edge:latest", "--bundle", "0" * 64), "by digest"),
        (("--client", IMAGE, "--bundle", "zz"), "64 hexadecimal digits"),
    ],
)
def test_wrong_words_are_refused(words: tuple[str, ...], reported: str) -> None:
    done = _tool("image_digests.py", *words)
    assert done.returncode == 2
    assert reported in done.stderr


# --- for real -----------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_coordinators_image_is_built_twice_and_is_the_same(tmp_path: Path) -> None:
    """Real buildah and mmdebstrap; the second build shares nothing with the first."""
    missing = [name for name in ("buildah", "mmdebstrap") if shutil.which(name) is None]
    assert not missing, f"apt-get install --no-install-recommends {' '.join(missing)}"
    found = []
    for name in ("one", "two"):
        out = tmp_path / name
        done = subprocess.run(
            [str(ROOT / "images/build.sh"), "server"],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                "OUT": str(out),
                "PYTHON": sys.executable,
                "SOURCE_DATE_EPOCH": "1700000000",
            },
        )
        assert done.returncode == 0, done.stderr[-4000:]
        (described,) = json.loads(_tool("image_digests.py", str(out / "server"), "--json").stdout)
        bill = json.loads((out / "server.cdx.json").read_text())
        names = {one["name"] for one in bill["components"]}
        assert {"fedlearn", "cryptography", "flwr", "libc6", "tpm2-tools"} <= names
        assert "torch" not in names
        assert described["user"] == "65532:65532"
        found.append(described)
        shutil.rmtree(out / "work")
    assert found[0] == found[1]
