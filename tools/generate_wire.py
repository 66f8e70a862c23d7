"""Generate the protobuf and gRPC code of ``fedlearn/wire`` from its ``.proto``.

``--check`` compares instead of writing, and fails when the two differ.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ["fedlearn/wire/fedlearn.proto"]


def generate(into: Path) -> None:
    """Write the generated modules below ``into``."""
    arguments = ["protoc", f"-I{ROOT}", f"--python_out={into}", f"--pyi_out={into}"]
    code: int = protoc.main([*arguments, f"--grpc_python_out={into}", *PROTOS])
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
