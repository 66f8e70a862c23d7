"""A cell without a simulator: a program that writes a result computed from its order.

``config.end`` chooses how it ends the first time: ``wait`` never, ``fail`` with an error, ``kill``
by SIGKILL. Each run adds its name to the file ``runs`` beside the results.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from fedlearn.experiment.cells import Cell
from fedlearn.experiment.keys import environment
from fedlearn.experiment.orders import Order
from fedlearn.experiment.store import CellResult, Failure, RoundResult, Store

__all__ = ["result"]

CLIENTS = 4


def result(
    cell: Cell,
    *,
    key: str = "0" * 32,
    rounds: int = 3,
    content: dict[str, object] | None = None,
    sparse: bool = False,
) -> CellResult:
    """Return a result whose values follow from the cell.

    A ``sparse`` one has no bytes, no virtual time and no clients, so that fewer figures are drawn.
    """
    draw = random.Random(f"{cell.name}")
    level = 0.6 + 0.2 * float(cell.values.get("config.rate", 0.5))
    epsilon = cell.values.get("privacy.epsilon")
    share = float(cell.values.get("hook.share", 0.0))
    return CellResult(
        key=key,
        cell=cell,
        content=content or {"versions": {"fedlearn": "aa" * 32, "torch": "2"}},
        environment=environment(),
        finished_unix_ms=1_700_000_000_000,
        seconds=1.5,
        cpu_seconds=1.25,
        rounds=tuple(
            RoundResult(
                round=number,
                seconds=0.5,
                bytes_down=0 if sparse else 1000,
                bytes_up=0 if sparse else 500,
                virtual_seconds=None if sparse else number * (1 + draw.random()),
                epsilon=None if epsilon is None else float(epsilon) * number / rounds,
                metrics={
                    "accuracy": level - share - 0.3 / number + draw.gauss(0, 0.01),
                    "loss": 1.0 / number if number < rounds else float("nan"),
                },
            )
            for number in range(1, rounds + 1)
        ),
        clients={}
        if sparse
        else {"accuracy": {f"client-{i}": level + 0.01 * i for i in range(CLIENTS)}},
        insecure="simulated",
    )


def main(folder: Path) -> int:
    """Run the order in ``folder``."""
    order = Order.read(folder)
    store = Store(folder.parent.parent)
    with (store.folder / "runs").open("a", encoding="utf-8") as runs:
        runs.write(f"{order.cell.name}\n")
    (folder / "progress").write_text(f"1/{order.rounds}", encoding="ascii")
    again = (folder / "run").exists()
    (folder / "run").mkdir(exist_ok=True)
    end = order.overrides.get("config.end")
    if end == "wait" and not again:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
        (store.folder / "waits").touch()
        time.sleep(600)
    if end == "kill" and not again:
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "fail" and not again:
        store.write_failure(folder.name, Failure(error="no such data", hint="make some"))
        return 1
    store.write_result(
        result(order.cell, key=order.key, rounds=order.rounds, content=dict(order.content))
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
