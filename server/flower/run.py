"""The process of one job: it runs the user's ServerApp, and nothing else.

Started by :mod:`server.flower.host` with one end of a socket pair, over which it gets the job
and asks for everything that it needs. It has no key, no network address and no place to keep
weights; it ends with its parent.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import run_from_proto
from flwr.proto.run_pb2 import Run as ProtoRun
from flwr.serverapp import ServerApp
from flwr.supercore.task_identity import TaskIdentity

from fedlearn import bundle
from fedlearn.errors import FedlearnError, JobError, TransportError
from fedlearn.seeds import derive, seed_generators
from server.flower.calls import MAX_RECORD_BYTES, Coordinator
from server.flower.grid import JobGrid, Rules
from server.flower.loop import Rounds
from server.flower.pipe import Pipe
from server.flower.plan import JobPlan, from_record

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run the job whose socket is the file descriptor in the first argument."""
    descriptor, parent, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    _end_with(parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe = Pipe(socket.socket(fileno=descriptor), limit=MAX_RECORD_BYTES)
    first = pipe.receive()
    if first is None:
        raise SystemExit(1)
    header, blobs = first
    run = ProtoRun.FromString(bytes(blobs.pop()))
    plan = from_record(header, blobs)
    coordinator = Coordinator(pipe)
    rounds = Rounds(coordinator, plan)
    failure: FedlearnError | None = None
    try:
        _run(plan, run_from_proto(run), coordinator, rounds, folder)
    except FedlearnError as error:
        failure = error
    except BaseException as error:  # noqa: BLE001  user code may raise anything; told, not lost
        traceback.print_exc()
        failure = JobError(
            f"the application raised {type(error).__name__}: {error}",
            hint="see the log of the job for where",
        )
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        coordinator.done(rounds=rounds.finished, error=failure)
    except TransportError:
        os._exit(1)
    # Threads of user code must not keep a finished job alive.
    os._exit(0 if failure is None else 1)


def _run(plan: JobPlan, run: Any, coordinator: Coordinator, rounds: Rounds, folder: Path) -> None:
    bundle.check_packages()
    rounds.install()
    TaskIdentity.run_id = run.run_id
    TaskIdentity.task_id = run.primary_task_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    application = bundle.unpack(plan.bundle, folder / "app")
    grid = JobGrid(
        coordinator,
        Rules(
            sites=plan.sites,
            quorum=plan.quorum,
            seconds=plan.seconds,
            stragglers=plan.stragglers,
            max_update_bytes=plan.max_update_bytes,
        ),
    )
    grid.set_run(run)
    context = Context(
        run_id=run.run_id,
        node_id=SUPERLINK_NODE_ID,
        node_config={},
        state=RecordDict(),
        run_config=application.run_config(plan.run_config),
    )
    seed = derive(plan.seed, "server", 0)
    seed_generators(seed)
    app = application.load("serverapp")
    if not isinstance(app, ServerApp):
        raise JobError(f"{application.serverapp} is a {type(app).__name__}, not a ServerApp")
    # Once more: the application has brought its libraries, and may have used them.
    seed_generators(seed)
    app(grid=grid, context=context)


def _end_with(parent: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    main()
