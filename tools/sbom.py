"""Write a bill of materials of an image: CycloneDX 1.5, JSON, on standard output.

    sbom.py FOLDER      an OCI layout (images/build.sh makes them)

It lists the packages in the image: Debian's by ``/var/lib/dpkg/status``, Python's by their
``*.dist-info/METADATA``. Layers are read in order and whiteouts are applied. The same image gives
the same document.
"""

from __future__ import annotations

import argparse
import email.parser
import hashlib
import json
import os
import re
import sys
import tarfile
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

STATUS = "var/lib/dpkg/status"
METADATA = re.compile(r"(?:.*/)?[^/]+\.dist-info/METADATA")
MAX_BYTES = 64 * 1024 * 1024


def manifest(layout: Path) -> tuple[str, dict[str, Any]]:
    """Return the digest and the manifest of the one image in a layout."""
    index = json.loads((layout / "index.json").read_text(encoding="utf-8"))
    (one,) = index["manifests"]
    return one["digest"], json.loads(blob(layout, one["digest"]).read_bytes())


def blob(layout: Path, digest: str) -> Path:
    """Return the path of a blob."""
    algorithm, _, value = digest.partition(":")
    if algorithm != "sha256" or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise SystemExit(f"{layout}: {digest!r} is no digest")
    return layout / "blobs" / algorithm / value


def read(layout: Path) -> dict[str, bytes]:
    """Return the files that describe packages, after all layers."""
    found: dict[str, bytes] = {}
    for layer in manifest(layout)[1]["layers"]:
        path = blob(layout, layer["digest"])
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                name = member.name.lstrip("./")
                folder, _, last = name.rpartition("/")
                if last.startswith(".wh."):
                    gone = f"{folder}/{last.removeprefix('.wh.')}".lstrip("/")
                    for known in [k for k in found if k == gone or k.startswith(gone + "/")]:
                        del found[known]
                elif member.isfile() and (name == STATUS or METADATA.fullmatch(name)):
                    if member.size > MAX_BYTES:
                        raise SystemExit(f"{name}: {member.size} bytes are too many")
                    content = archive.extractfile(member)
                    assert content is not None
                    found[name] = content.read()
    return found


def debian(status: bytes) -> Iterator[dict[str, Any]]:
    """Yield Debian's packages."""
    for paragraph in status.decode(errors="replace").split("\n\n"):
        fields = email.parser.HeaderParser().parsestr(paragraph.strip())
        name, version = fields.get("Package"), fields.get("Version")
        if name and version and (fields.get("Status") or "").endswith(" installed"):
            architecture = fields.get("Architecture", "")
            purl = f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}"
            yield {
                "type": "library",
                "bom-ref": purl,
                "name": name,
                "version": version,
                "purl": purl,
            }


def python(metadata: bytes) -> dict[str, Any]:
    """Return a Python distribution."""
    fields = email.parser.HeaderParser().parsestr(metadata.decode(errors="replace"))
    name = re.sub(r"[-_.]+", "-", fields["Name"]).lower()
    purl = f"pkg:pypi/{name}@{quote(fields['Version'])}"
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": fields["Version"],
        "purl": purl,
    }
    if expression := fields.get("License-Expression"):
        component["licenses"] = [{"expression": expression}]
    return component


def document(layout: Path, epoch: int) -> dict[str, Any]:
    """Return the bill of materials of the image in a layout."""
    digest, _ = manifest(layout)
    files = read(layout)
    components = [*debian(files.get(STATUS, b""))]
    components += [python(data) for name, data in files.items() if name != STATUS]
    components.sort(key=lambda one: str(one["purl"]))
    value = hashlib.sha256(digest.encode()).digest()
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=value[:16], version=5)}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, UTC).isoformat().replace("+00:00", "Z"),
            "component": {
                "type": "container",
                "bom-ref": digest,
                "name": f"fedlearn/{layout.name}",
                "version": digest,
            },
        },
        "components": components,
    }


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layout", type=Path, help="an OCI layout")
    layout = parser.parse_args().layout
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    json.dump(document(layout, epoch), sys.stdout, indent=1, sort_keys=True)
    print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
