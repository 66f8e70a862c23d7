"""The process of a worker: ``python -m fedlearn.simulation.clients.worker_main FD``.

Started by :mod:`fedlearn.simulation.clients.workers`. It loads the app of the job once and makes
the calls that it gets, one at a time. User code runs here, without a sandbox.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedlearn.app.install import Installed
from fedlearn.config.filters import FilterSpec
from fedlearn.errors import FedlearnError
from fedlearn.job.spec import JobSpec
from fedlearn.sandbox.memory_file import Part
from fedlearn.sandbox.process_channel import ProcessChannel
from fedlearn.simulation.clients.calls import ClientCall, Clients
from fedlearn.simulation.clients.workers import LIMIT
from fedlearn.simulation.kept.memories import pack_memory, unpack_memory
from fedlearn.simulation.parties.output import captured
from server.flower.ipc.failures import failure_of
from server.flower.ipc.process_lifetime import end_with

__all__ = ["answered", "main"]


def answered(
    clients: Clients, header: Mapping[str, Any], blobs: Sequence[Part], lines: list[str]
) -> tuple[dict[str, Any], list[Part]]:
    """Make the call of a record, and return its result as JSON and byte strings.

    :param lines: what the app wrote before it was called.
    """
    memory = bytes(blobs[-1]) if header["memory"] else None
    call = ClientCall(
        site=header["site"],
        index=header["index"],
        data=header["data"],
        node=header["node"],
        id=header["id"],
        frames=blobs[:-1] if header["memory"] else blobs,
        memory=unpack_memory(memory),
    )
    with captured(lines.append):
        result = clients.call(call)
    kept = pack_memory(result.memory)
    parts = [*result.frames, *([] if kept is None else [kept])]
    return {"memory": kept is not None, "lines": [*lines, *result.lines]}, parts


def main(arguments: list[str]) -> int:
    """Make calls until the simulation has ended."""
    channel = ProcessChannel(socket.socket(fileno=int(arguments[0])), limit=LIMIT)
    first = channel.receive_parts()
    if first is None:
        return 0
    job = first[0]
    end_with(job["parent"])
    clients: Clients | None = None
    while (asked := channel.receive_parts()) is not None:
        lines: list[str] = []
        answer: dict[str, Any]
        parts: list[Part] = []
        try:
            if clients is None:
                with captured(lines.append):
                    clients = Clients(
                        JobSpec.from_json(job["spec"]),
                        Installed(
                            folder=Path(job["folder"]),
                            name=job["name"],
                            serverapp="",
                            clientapp=job["clientapp"],
                            config=job["config"],
                        ),
                        run=job["run"],
                        filters=tuple(FilterSpec(**each) for each in job["filters"]),
                    )
            answer, parts = answered(clients, *asked, lines)
        except FedlearnError as error:
            answer = {"error": failure_of(error)}
        channel.send(answer, parts)
        del asked, parts  # files, which would live until the next call
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
