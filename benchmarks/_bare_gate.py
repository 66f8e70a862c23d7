"""The floor of the gate: a bare gRPC server with its two calls over TLS, which decides nothing.

As a program it prints one JSON object with its ``gate`` and ``roots``, and serves until its input
ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import grpc  # noqa: E402

from edge.protocol.identity import certification_request, key_pem, new_key  # noqa: E402
from fedlearn.wire import fedlearn_pb2 as pb  # noqa: E402
from fedlearn.wire import fedlearn_pb2_grpc as stubs  # noqa: E402
from server.identity.pki import CertificateAuthority  # noqa: E402

_STUBS: Final[Any] = stubs


@contextmanager
def bare_gate() -> Iterator[tuple[int, dict[str, str]]]:
    """Run this file as a program; yield its process number, gate and roots."""
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        if process.stdout is None:
            raise SystemExit("the bare gate has no output")
        yield process.pid, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


class _Gate(stubs.GateServicer):  # type: ignore[misc, name-defined]
    async def Challenge(self, request: Any, context: Any) -> pb.ChallengeReply:  # noqa: N802
        return pb.ChallengeReply(nonce=os.urandom(32))

    async def Admit(self, request: Any, context: Any) -> pb.AdmitReply:  # noqa: N802
        # As many bytes as a chain and a result have.
        return pb.AdmitReply(
            admitted=pb.Admitted(certificate_chain=bytes(1600), result=bytes(2400))
        )


async def _main() -> None:
    now, key = datetime.now(UTC), new_key()
    ca = CertificateAuthority.create("bare.example", now)
    issued = ca.issue_server(certification_request(key), ips=["127.0.0.1"], now=now)
    server = grpc.aio.server()
    _STUBS.add_GateServicer_to_server(_Gate(), server)
    credentials = grpc.ssl_server_credentials([(key_pem(key), issued.chain_pem)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    found = {"gate": f"127.0.0.1:{port}", "roots": ca.certificate_pem.decode()}
    print(json.dumps(found), flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main())
