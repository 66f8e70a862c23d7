"""What the compression of updates costs, what it saves, and what becomes of the accuracy.

    python benchmarks/compression.py [--mb 100] [--repeat 5] [--rounds 15] [--seeds 3] [--json]

*Cost.* An update of random float32 weights, whose difference to the model is random as well, is
encoded and decoded as client and aggregator do. The floor is one copy of the same array. The peer
is the time that the bytes saved would take on a link of 1 Gbit/s.

*Accuracy.* Federated averaging of the demo's convolutional network, without a coordinator: the
sites' training, the codec with each site's residual, and the exact mean run in this process. Every
kind starts from the same weights and draws the same batches.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "fedlearn/demo/apps/images"))

from _report import Row, at_least, at_most, interleave, measured, options, show

from fedlearn.compression.codec import Residual, decode, encode
from fedlearn.compression.spec import CompressionSpec
from fedlearn.demo import digits, fashion
from fedlearn.update.arrays import Array
from server.flower.aggregation.mean import ExactMean

KINDS = {
    "bf16": CompressionSpec(update="bf16"),
    "fp16": CompressionSpec(update="fp16"),
    "int8": CompressionSpec(update="int8"),
    "topk 0.1": CompressionSpec(update="topk", fraction=0.1),
    "topk 0.01": CompressionSpec(update="topk", fraction=0.01),
    "topk 0.01, no feedback": CompressionSpec(update="topk", fraction=0.01, error_feedback=False),
}
SITES = 5
LINK = 125e6
"""Bytes a second."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--mb", type=float, default=100, help="size of the update")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--data", choices=("fashion", "digits"), default="fashion")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.mb, arguments.repeat, arguments.data = 4, 2, "digits"
        arguments.rounds, arguments.seeds = 2, 1
    rows = costs(arguments.mb, arguments.repeat)
    rows += accuracies(arguments.data, arguments.rounds, arguments.seeds, quick=arguments.quick)
    show(rows, as_json=arguments.json)


# --- cost -----------------------------------------------------------------------------


def costs(megabytes: float, repeat: int) -> list[Row]:
    """Return what encoding and decoding take for each kind."""
    draw = np.random.default_rng(1)
    size = int(megabytes * 1e6) // 4
    model = {"w": draw.standard_normal(size, np.float32)}
    update = {"w": model["w"] + np.float32(0.01) * draw.standard_normal(size, np.float32)}
    copy = np.empty_like(model["w"])
    sizes: dict[str, int] = {}

    def coded(name: str) -> float:
        started = time.thread_time()
        encoded = encode(update, model, KINDS[name])
        found = decode(encoded.arrays, model, KINDS[name])
        taken = time.thread_time() - started
        sizes[name] = bytes_of(encoded.arrays)
        if not np.isfinite(found["w"]).all():
            raise SystemExit(f"{name}: decoded a number that is not finite")
        return taken

    def copied() -> float:
        started = time.thread_time()
        np.copyto(copy, update["w"])
        return time.thread_time() - started

    tasks: dict[str, Callable[[], float]] = {
        name: (lambda name=name: coded(name)) for name in KINDS
    }
    samples = interleave({**tasks, "one copy": copied}, repeat=repeat)
    plain = update["w"].nbytes
    saved = "the bytes saved, at 1 Gbit/s"
    return [
        measured(
            f"encode and decode {megabytes:g} MB, {name}: {plain / sizes[name]:.1f} times smaller",
            unit="s",
            ours=samples[name],
            peers={saved: (plain - sizes[name]) / LINK},
            floor={"one copy": samples["one copy"]},
            target=[at_most(0.5, of=saved)],
            how=f"processor time of one thread; medians of {repeat} interleaved runs",
        )
        for name in KINDS
    ]


def bytes_of(arrays: Mapping[str, Array]) -> int:
    """Return the bytes of all arrays together."""
    return sum(array.nbytes for array in arrays.values())


# --- accuracy -------------------------------------------------------------------------


def accuracies(data: str, rounds: int, seeds: int, *, quick: bool) -> list[Row]:
    """Return the accuracy of each kind beside that of plain updates, over several seeds."""
    none = CompressionSpec()
    found: dict[str, list[float]] = {name: [] for name in ("none", *KINDS)}
    sent: dict[str, float] = {}
    for seed in range(seeds):
        federation = Federation(data, seed)
        for name, spec in {"none": none, **KINDS}.items():
            accuracy, sent[name] = federation.run(spec, rounds)
            found[name].append(accuracy)
    least = {"topk 0.01": 0.9, "topk 0.01, no feedback": 0.0, "topk 0.1": 0.97}
    return [
        measured(
            f"accuracy, {data}, {rounds} rounds, {name}: {sent[name]:.0f} bytes a round and site",
            unit="accuracy",
            ours=found[name],
            peers={"none": found["none"]},
            target=[] if quick else [at_least(least.get(name, 0.98), of="none")],
            how=f"mean of {SITES} sites' test sets by number of images; medians of {seeds} splits "
            f"and seeds; plain updates have {sent['none']:.0f} bytes",
        )
        for name in KINDS
    ]


class Federation:
    """The demo's images at some sites, and the demo's network."""

    def __init__(self, data: str, seed: int) -> None:
        from images_app import model

        self.model: Any = model
        load = fashion.load if data == "fashion" else digits.load
        made = load(sites=SITES, seed=seed)
        self.size = int(made.settings["image-size"])
        self.seed = seed
        self.sites = [
            (
                model.tensors(site.train["images"], site.train["labels"]),
                model.tensors(site.test["images"], site.test["labels"]),
            )
            for site in made.sites
        ]

    def run(self, spec: CompressionSpec, rounds: int) -> tuple[float, float]:
        """Return the accuracy after ``rounds``, and the bytes of an update."""
        import torch

        torch.manual_seed(self.seed)
        net = self.model.Net(self.size)
        weights: dict[str, Array] = self.model.unload(net)
        residuals: list[Residual] = [{} for _ in self.sites]
        sizes: list[int] = []
        for number in range(1, rounds + 1):
            mean = ExactMean(weights)
            for site, (train, _) in enumerate(self.sites):
                self.model.load(net, weights)
                self.model.train(
                    net,
                    *train,
                    epochs=1,
                    batch=32,
                    rate=0.05,
                    momentum=0.9,
                    rng=np.random.default_rng([self.seed, number, site]),
                )
                update = self.model.unload(net)
                if spec.active:
                    encoded = encode(update, weights, spec, residual=residuals[site])
                    residuals[site] = encoded.residual
                    sizes.append(bytes_of(encoded.arrays))
                    update = decode(encoded.arrays, weights, spec)
                else:
                    sizes.append(bytes_of(update))
                mean.add(update, len(train[1]))
            weights = mean.result()
        self.model.load(net, weights)
        right = sum(self.model.measure(net, *test)[1] for _, test in self.sites)
        return right / sum(len(test[1]) for _, test in self.sites), statistics.mean(sizes)


if __name__ == "__main__":
    main()
