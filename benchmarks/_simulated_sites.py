"""Sites that only hold their stream, many in one process.

As a program it reads one line of JSON, connects its sites, prints how many streams are open, and
prints that again when its input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import grpc

from fedlearn.identity.spiffe import COORDINATOR_DNS
from fedlearn.wire import fedlearn_pb2 as pb
from fedlearn.wire import fedlearn_pb2_grpc as stubs
from fedlearn.wire.channel import HEARTBEAT_SECONDS

AT_ONCE: Final = 16
CONNECT_SECONDS: Final = 240.0
REPORT: Final = json.dumps({"launcher": "process", "cpu": 4, "memory_mib": 8192, "data": ["stays"]})


@contextlib.contextmanager
def simulator(
    address: str, roots: str, identities: list[dict[str, str]], cores: list[int]
) -> Iterator[subprocess.Popen[str]]:
    """Start a process that simulates sites: this file as a program."""
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    os.sched_setaffinity(process.pid, cores)
    try:
        if process.stdin is None:
            raise SystemExit("the process of simulated sites has no input")
        process.stdin.write(
            json.dumps({"address": address, "roots": roots, "sites": identities}) + "\n"
        )
        process.stdin.flush()
        yield process
    finally:
        process.kill()
        process.wait()


def reported(process: subprocess.Popen[str]) -> int:
    """Return the number on the next line of a process."""
    line = process.stdout.readline() if process.stdout is not None else ""
    if not line:
        raise SystemExit("a process of simulated sites has ended")
    return int(line)


def close(process: subprocess.Popen[str]) -> None:
    """Let a process of simulated sites end."""
    if process.stdin is not None:
        process.stdin.close()


async def simulate(address: str, roots: str, sites: list[dict[str, str]]) -> None:
    """Hold a stream for each site; print how many there are, at the start and at the end."""
    gate = asyncio.Semaphore(AT_ONCE)
    open_streams: set[int] = set()
    everybody = asyncio.Event()

    async def one(number: int, site: dict[str, str]) -> None:
        credentials = grpc.ssl_channel_credentials(
            roots.encode(), site["key"].encode(), site["chain"].encode()
        )
        options = [
            ("grpc.ssl_target_name_override", COORDINATOR_DNS),
            ("grpc.default_authority", COORDINATOR_DNS),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
        ]
        async with grpc.aio.secure_channel(address, credentials, options) as channel:
            call = stubs.SitesStub(channel).Follow()  # type: ignore[no-untyped-call]
            async with gate:
                await call.write(pb.SiteReport(hello=pb.Hello(version="benchmark")))
                await call.write(pb.SiteReport(capabilities=pb.Capabilities(json=REPORT)))
            open_streams.add(number)
            if len(open_streams) == len(sites):
                everybody.set()
            reader = asyncio.create_task(listen(call))
            try:
                while not reader.done():
                    await asyncio.wait({reader}, timeout=HEARTBEAT_SECONDS)
                    now = pb.Heartbeat(unix_ms=int(time.time() * 1000))
                    await call.write(pb.SiteReport(heartbeat=now))
            finally:
                open_streams.discard(number)
                reader.cancel()

    async def listen(call: Any) -> None:
        async for _ in call:
            pass

    tasks = [asyncio.create_task(one(number, site)) for number, site in enumerate(sites)]
    try:
        await asyncio.wait_for(everybody.wait(), CONNECT_SECONDS)
    except TimeoutError:
        raise SystemExit(f"{len(open_streams)} of {len(sites)} streams came up") from None
    print(len(open_streams), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(len(open_streams), flush=True)
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    given = json.loads(sys.stdin.readline())
    asyncio.run(simulate(given["address"], given["roots"], given["sites"]))
