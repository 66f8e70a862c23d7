"""The process of one cell: ``python -m fedlearn.experiment.cell_main FOLDER``.

It runs the order in FOLDER with the simulator and writes the result, or why it failed. SIGTERM ends
it as Ctrl-C does: with status 130, and a checkpoint from which the cell goes on.
"""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path
from typing import Final

from fedlearn.errors import FedlearnError
from fedlearn.experiment.keys import environment
from fedlearn.experiment.orders import Order
from fedlearn.experiment.simulated import run_simulated
from fedlearn.experiment.store import CellResult, Failure, Store
from fedlearn.local.children import terminate_as_interrupt

__all__ = ["main"]

_INTERRUPTED: Final = 130


def main(folder: Path) -> int:
    """Run the order in ``folder`` and return the exit status."""
    store = Store(folder.parent.parent)
    try:
        with terminate_as_interrupt():
            _run(store, Order.read(folder))
    except KeyboardInterrupt:
        return _INTERRUPTED
    except FedlearnError as error:
        store.write_failure(
            folder.name, Failure(error=str(error), hint=error.hint, unix_ms=_unix_ms())
        )
        return 1
    except Exception as error:  # noqa: BLE001 (an app may raise anything; it is recorded)
        text = "".join(traceback.format_exception(error))
        store.write_failure(
            folder.name,
            Failure(
                error=f"{type(error).__name__}: {error}", tail=text[-4000:], unix_ms=_unix_ms()
            ),
        )
        return 1
    return 0


def _run(store: Store, order: Order) -> None:
    began, processor = time.monotonic(), time.process_time()
    found = run_simulated(order, store.cell_folder(order.key))
    store.write_result(
        CellResult(
            key=order.key,
            cell=order.cell,
            content=order.content,
            environment=environment(),
            finished_unix_ms=_unix_ms(),
            seconds=time.monotonic() - began,
            cpu_seconds=time.process_time() - processor,
            rounds=found.rounds,
            clients=found.clients,
            insecure=found.insecure,
        )
    )


def _unix_ms() -> int:
    return int(time.time() * 1000)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
