"""Images for a real node: the project's own, built once for each state of the sources.

``images/build.sh`` makes OCI layouts; they lie in ``.cache/images`` under a key of everything
that goes into them, so that a second run builds nothing. Names and digests are those of a
registry that does not exist: what is not on the node cannot be pulled.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
CACHE: Final = ROOT / ".cache" / "images"
REGISTRY: Final = "registry.example"
PAUSE: Final = "localhost/pause:1"
_EPOCH: Final = "1700000000"
_INPUTS: Final = ("attestation", "edge", "fedlearn", "server", "images", "pyproject.toml")
_NAME: Final = "io.containerd.image.name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A layout with one image.

    ``digest``  of its manifest, ``sha256:`` and 64 hexadecimal digits
    """

    layout: Path
    digest: str

    def name(self, repository: str) -> str:
        """Return what a pod calls it."""
        return f"{REGISTRY}/{repository}@{self.digest}"


def built(*targets: str) -> Mapping[str, Image]:
    """Return the images of ``images/build.sh`` by target, built where they are not the newest.

    :raises RuntimeError: with the last that the script wrote, when it fails.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        key = _key()
        stale = [name for name in targets if _text(CACHE / f"{name}.key") != key]
        if stale:
            _build(stale)
            for name in stale:
                (CACHE / f"{name}.key").write_text(key)
        return {name: _image(CACHE / name) for name in targets}


def write_archive(path: Path, images: Mapping[str, Image]) -> None:
    """Write an archive that ``ctr images import`` takes, of images by their names in full.

    The image of pods' sandboxes is among them: the first one's layers, with a program that
    waits.
    """
    entries: list[dict[str, Any]] = []
    blobs: dict[str, Path | bytes] = {}
    for name, image in images.items():
        manifest = (image.layout / _place(image.digest)).read_bytes()
        if not entries:
            entries.append(_sandbox(image, json.loads(manifest), blobs))
        entries.append(_entry(name, image.digest, len(manifest)))
        for blob in (image.layout / "blobs/sha256").iterdir():
            blobs[f"blobs/sha256/{blob.name}"] = blob
    index = {"schemaVersion": 2, "manifests": entries}
    with tarfile.open(path, "w") as archive:
        _add(archive, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
        _add(archive, "index.json", json.dumps(index).encode())
        for name, content in blobs.items():
            if isinstance(content, bytes):
                _add(archive, name, content)
            else:
                archive.add(content, name)


def _build(targets: Iterable[str]) -> None:
    done = subprocess.run(
        [str(ROOT / "images/build.sh"), *targets],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "OUT": str(CACHE),
            "PYTHON": sys.executable,
            # Not the commit's: the base stays the same over many of them.
            "SOURCE_DATE_EPOCH": _EPOCH,
        },
    )
    # The base and the wheels stay for the next build; the storage holds every image ever made.
    shutil.rmtree(CACHE / "work/storage", ignore_errors=True)
    shutil.rmtree(CACHE / "work/run", ignore_errors=True)
    if done.returncode:
        raise RuntimeError(f"images/build.sh failed:\n{done.stderr[-3000:]}")


def _key() -> str:
    """Return a digest over all that goes into an image, but for what Debian's mirror serves."""
    total = hashlib.sha256(os.environ.get("DEBIAN_MIRROR", "").encode())
    for top in _INPUTS:
        for path in sorted([ROOT / top, *(ROOT / top).rglob("*")]):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(ROOT).as_posix()
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                total.update(f"{name}\0{digest}\n".encode())
    return total.hexdigest()


def _image(layout: Path) -> Image:
    (manifest,) = json.loads((layout / "index.json").read_text())["manifests"]
    return Image(layout=layout, digest=manifest["digest"])


def _sandbox(
    image: Image, manifest: dict[str, Any], blobs: dict[str, Path | bytes]
) -> dict[str, Any]:
    config = json.loads((image.layout / _place(manifest["config"]["digest"])).read_bytes())
    config["config"] = {"Cmd": ["/bin/sleep", "infinity"], "User": "65532:65532"}
    config.pop("history", None)
    described = {**manifest["config"], **_put(blobs, config)}
    made = _put(blobs, {**manifest, "config": described})
    return _entry(PAUSE, made["digest"], made["size"])


def _put(blobs: dict[str, Path | bytes], document: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(document).encode()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    blobs[_place(digest)] = data
    return {"digest": digest, "size": len(data)}


def _entry(name: str, digest: str, size: int) -> dict[str, Any]:
    return {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest,
        "size": size,
        "annotations": {_NAME: name},
    }


def _place(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
