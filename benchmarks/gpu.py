"""Moves a model between a GPU and the document that is sent: ours, Flower's way, the bare transfer.

Flower's way is ``ArrayRecord(model.state_dict())`` and what packs it, and ``to_torch_state_dict``
followed by ``load_state_dict``. The floor is one transfer of the same bytes between the GPU and
page-locked memory, without a document. Without a GPU the script states so and has no row.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from _report import Row, at_most, interleave, measured, options, show
from flwr.app import ArrayRecord, RecordDict

from fedlearn.app.array_records import record_of
from fedlearn.app.flower import Packer
from fedlearn.update.arrays import decode
from fedlearn.update.torch import encode_state_dict, fill_state_dict

LAYERS = 25


def main() -> int:
    """Measure, and print the rows."""
    parser = options(__doc__)
    parser.add_argument("--parameters", type=int, default=250_000_000, help="of the model")
    parser.add_argument("--repeat", type=int, default=7)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu: no CUDA device here, so nothing was measured", file=sys.stderr)
        show([], as_json=arguments.json)
        return 0
    size = 2_500_000 if arguments.quick else arguments.parameters
    repeat = 2 if arguments.quick else arguments.repeat
    show(rows(size, repeat), as_json=arguments.json)
    return 0


def rows(size: int, repeat: int) -> list[Row]:
    """Return one row for each direction."""
    torch.manual_seed(1)
    state = {f"layer.{i}": torch.randn(size // LAYERS, device="cuda") for i in range(LAYERS)}
    target = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    document = encode_state_dict(state)
    check(state, target, bytes(document))
    pinned = torch.empty(size // LAYERS * LAYERS, pin_memory=True)
    flat = torch.cat(list(state.values()))
    record = record_of(decode(document.view()))

    def flower_out() -> None:
        Packer().content(RecordDict({"arrays": ArrayRecord(state)}))

    def flower_in() -> None:
        for name, tensor in record.to_torch_state_dict().items():
            target[name].copy_(tensor)

    out = interleave(
        {
            "ours": timed(lambda: encode_state_dict(state)),
            "Flower's ArrayRecord": timed(flower_out),
            "page-locked transfer": timed(lambda: pinned.copy_(flat)),
        },
        repeat=repeat,
    )
    into = interleave(
        {
            "ours": timed(lambda: fill_state_dict(target, decode(document.view()))),
            "Flower's ArrayRecord": timed(flower_in),
            "page-locked transfer": timed(lambda: flat.copy_(pinned)),
        },
        repeat=repeat,
    )
    device = torch.cuda.get_device_name()
    found = []
    for name, samples in (("GPU to document", out), ("document to GPU", into)):
        found.append(
            measured(
                f"{name}, {size * 4 / 1e6:.0f} MB",
                unit="s",
                ours=samples["ours"],
                peers={"Flower's ArrayRecord": samples["Flower's ArrayRecord"]},
                floor={"page-locked transfer": samples["page-locked transfer"]},
                target=[at_most(0.5, "Flower's ArrayRecord")],
                how=f"wall time on one {device}; medians of {repeat} interleaved runs, random "
                "weights in 25 tensors",
            )
        )
    return found


def check(state: dict[str, torch.Tensor], target: dict[str, torch.Tensor], data: bytes) -> None:
    """Stop without a number when a side computes another model."""
    fill_state_dict(target, decode(data))
    packed = Packer().content(RecordDict({"arrays": ArrayRecord(state)}))
    theirs = next(iter(packed.array_records.values()))["packed"].data
    same = all(torch.equal(target[name], tensor) for name, tensor in state.items())
    if not same or bytes(theirs) != data:
        raise SystemExit("gpu: the two sides made different documents")


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """Return a task that does ``work`` and returns its seconds."""

    def task() -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - started

    return task


if __name__ == "__main__":
    raise SystemExit(main())
