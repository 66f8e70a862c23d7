"""Print the digests of images, and the reference values of confidential pods made from them.

    image_digests.py LAYOUT...                                  digests, for values.yaml
    image_digests.py --stamp CHARTS LAYOUT...                   ... and writes them there
    image_digests.py --client IMAGE@sha256:... --bundle HEX     reference values, for policy.toml

A confidential pod is measured with its initdata, which names the client's image and the app's
bundle (edge/kube/initdata.py). The values give its digest for each register that has it. The
measurements of the TEE's firmware and kernel come from those who build them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from attestation.config import dumps

IMAGE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._:/-]{0,400}@sha256:[0-9a-f]{64}")


class Damaged(Exception):
    """The content of a layout does not match its digests."""


def verified(layout: Path, digest: str) -> Path:
    """Return the path of a blob whose bytes have ``digest``."""
    algorithm, _, value = digest.partition(":")
    if algorithm != "sha256" or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise Damaged(f"{digest!r} is no digest")
    path = layout / "blobs" / algorithm / value
    found = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(1024 * 1024):
            found.update(data)
    if found.hexdigest() != value:
        raise Damaged(f"the blob {digest} has the SHA-256 {found.hexdigest()}")
    return path


def describe(layout: Path) -> dict[str, Any]:
    """Return the digests of the one image in an OCI layout, each checked."""
    index = json.loads((layout / "index.json").read_text(encoding="utf-8"))
    if len(index["manifests"]) != 1:
        raise Damaged(f"holds {len(index['manifests'])} images, not one")
    digest = index["manifests"][0]["digest"]
    manifest = json.loads(verified(layout, digest).read_bytes())
    config = json.loads(verified(layout, manifest["config"]["digest"]).read_bytes())
    for layer in manifest["layers"]:
        verified(layout, layer["digest"])
    return {
        "image": layout.name,
        "digest": digest,
        "config": manifest["config"]["digest"],
        "layers": [layer["digest"] for layer in manifest["layers"]],
        "bytes": sum(layer["size"] for layer in manifest["layers"]),
        "user": config["config"].get("User", ""),
        "created": config.get("created", ""),
    }


STAMPS = {
    "server": ("fedlearn-server", "image"),
    "edge": ("fedlearn-edge", "image"),
    "client": ("fedlearn-edge", "client.image"),
}
"""The place of the digest of each image: the chart, and the path in its values."""


def stamp(charts: Path, image: str, digest: str) -> None:
    """Write a digest into the values of its chart, and nothing else."""
    if image not in STAMPS:
        raise Damaged(f"{image!r} is none of {', '.join(STAMPS)}")
    chart, place = STAMPS[image]
    path = charts / chart / "values.yaml"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    at: list[tuple[int, str]] = []
    for number, line in enumerate(lines):
        found = re.match(r"( *)([A-Za-z0-9_.-]+):", line)
        if found is None:
            continue
        while at and at[-1][0] >= len(found[1]):
            at.pop()
        at.append((len(found[1]), found[2]))
        if ".".join(name for _, name in at) == f"{place}.digest":
            lines[number] = f'{found[1]}digest: "{digest}"\n'
            path.write_text("".join(lines), encoding="utf-8")
            return
    raise Damaged(f"{path} has no {place}.digest")


def references(image: str, bundle: bytes, tee: str) -> str:
    """Return the [[reference]] tables of a policy, for one client image and one app."""
    from edge.kube.initdata import initdata_values

    values = initdata_values(image=image, bundle=bundle, tee=tee, name=f"initdata of {image}")
    lines = []
    for value in values:
        table = {"claim": value.claim, "value": value.value.hex(), "name": value.name}
        if value.tee is not None:
            table["tee"] = value.tee.value
        lines.append("[[reference]]\n" + dumps(table))
    return "\n".join(lines)


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layouts", nargs="*", type=Path, metavar="LAYOUT", help="an OCI layout")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.add_argument("--stamp", type=Path, metavar="CHARTS", help="folder of the charts")
    parser.add_argument("--client", metavar="IMAGE", help="a client's image by digest")
    parser.add_argument("--bundle", metavar="HEX", help="SHA-256 of the app's bundle")
    parser.add_argument("--tee", choices=("tdx", "snp"), default="tdx")
    arguments = parser.parse_args()
    if bool(arguments.client) != bool(arguments.bundle):
        parser.error("--client and --bundle go together")
    if not arguments.client and not arguments.layouts:
        parser.error("name an OCI layout, or --client and --bundle")
    if arguments.client:
        if not IMAGE.fullmatch(arguments.client):
            parser.error("--client: name the image by digest, registry/name@sha256:...")
        if not re.fullmatch(r"[0-9a-f]{64}", arguments.bundle):
            parser.error("--bundle: must be a SHA-256 in 64 hexadecimal digits")
        print(references(arguments.client, bytes.fromhex(arguments.bundle), arguments.tee))
        return 0
    found = []
    for layout in arguments.layouts:
        try:
            found.append(describe(layout))
            if arguments.stamp:
                stamp(arguments.stamp, layout.name, found[-1]["digest"])
        except (OSError, ValueError, KeyError, Damaged) as error:
            print(f"{layout}: {error}", file=sys.stderr)
            return 1
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    for one in found:
        print(f"{one['image']:8} {one['digest']}  {one['bytes'] / 1e6:.0f} MB, user {one['user']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
