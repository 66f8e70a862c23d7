"""The wire between sites, clients and the coordinator: generated code and its limits.

The pages are docs/reference/wire.md and docs/contributing/compatibility.md.
"""

from __future__ import annotations

import os

# gRPC reads it when it is imported, which every module of this package does after this line.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
