"""Measures the cost of a client for a job's exchange in one round, with few nodes and with many.

Every node requests work, fetches the model, and delivers an update; the job's side pushes the
questions and pulls the answers as they arrive. Requests go through the ASGI application, without
sockets and without TLS, so that only the exchange is measured. The result is the processor time of
this process for one client, for each number of nodes. The ratio is the time with many nodes to that
with the fewest; 1 is linear.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from _report import at_most, measured, options, show  # noqa: E402
from flwr.app import Array, ArrayRecord, RecordDict  # noqa: E402

from server.flower.exchange.job_exchange import JobExchange  # noqa: E402
from tests.fakes.exchange import FakeNode, ask, body  # noqa: E402
from tests.harness.job_plans import job_plan  # noqa: E402

TARGET = 1.5


class Round:
    """One round of ``count`` nodes; the answers are made before anything is timed."""

    def __init__(self, count: int, values: int) -> None:
        self.link = JobExchange(job_plan(sites=[f"s{number}" for number in range(count)]))
        self.nodes = [FakeNode(self.link, site) for site in self.link.plan.spec.sites]
        array = Array(np.zeros(values, np.float32))
        self.content = RecordDict({"arrays": ArrayRecord({"w": array})})
        for node in self.nodes:
            node.activate()

    def seconds(self) -> float:
        """Return the processor seconds of one round."""
        asked = ask(self.link, *[node.number for node in self.nodes], content=self.content)
        bodies = [body(n.answer(q)) for n, q in zip(self.nodes, asked, strict=True)]
        started = time.process_time()
        pulling = threading.Thread(target=self._pull, args=(asked,))
        pulling.start()
        asyncio.run(self._work(bodies))
        pulling.join()
        return time.process_time() - started

    def _pull(self, asked: list[str]) -> None:
        left = len(asked) - len(self.link.pull(asked, 60))
        while left:
            left -= len(self.link.pull(None, 60))

    async def _work(self, bodies: list[bytes]) -> None:
        async def work(node: FakeNode, delivery: bytes) -> None:
            fetched, _ = await node.request("fetch", [b""])
            delivered, _ = await node.request("deliver", [delivery])
            if (fetched, delivered) != (200, 200):
                raise SystemExit(f"{node.site} got {fetched} and {delivered}")

        works = zip(self.nodes, bodies, strict=True)
        await asyncio.gather(*(work(node, delivery) for node, delivery in works))


def main() -> None:
    """Measure each number of nodes."""
    parser = options(__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[100, 500, 1000, 2000])
    parser.add_argument("--values", type=int, default=1000, help="float32 values of the model")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.nodes, arguments.rounds = [10, 20], 1
    found: dict[int, list[float]] = {}
    for count in arguments.nodes:
        made = Round(count, arguments.values)
        found[count] = [1e6 * made.seconds() / count for _ in range(arguments.rounds)]
    fewest, *more = found
    floor = f"{fewest} clients"
    rows = [
        measured(
            f"a client's part of a round for the exchange, {count} clients",
            unit="µs",
            ours=found[count],
            floor={floor: found[fewest]},
            target=[at_most(TARGET, floor)],
            how=f"CPU time without sockets and TLS; medians of {arguments.rounds} rounds",
        )
        for count in more
    ]
    show(rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
