"""Generate the code of each ``.proto``: messages, and for ``fedlearn/wire`` the services.

``--check`` compares instead of writing, and fails when the two differ.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = {
    "fedlearn/wire/fedlearn.proto": "--grpc_python_out",
    "attestation/attesters/ccnp.proto": "",  # the attester calls two services by name
}


def generate(into: Path) -> None:
    """Write the generated modules below ``into``."""
    arguments = ["protoc", f"-I{ROOT}", f"--python_out={into}", f"--pyi_out={into}"]
    for proto, services in PROTOS.items():
        more = [f"{services}={into}"] if services else []
        code: int = protoc.main([*arguments, *more, proto])
        if code != 0:
            raise SystemExit(code)


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        stale = [
            path
            for path in Path(scratch).rglob("*.py*")
            if (ROOT / path.relative_to(scratch)).read_bytes() != path.read_bytes()
        ]
        for path in stale:
            print(f"{path.relative_to(scratch)} is stale: run `make wire`", file=sys.stderr)
        return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
