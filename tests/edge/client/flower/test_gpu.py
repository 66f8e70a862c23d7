"""A ClientApp on a GPU: in its sandbox it reaches the device when the job asks for one, only then,
and computes the same bits again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, Metadata, RecordDict

from edge.client.flower.app_process import AppLimits
from edge.client.flower.fleet import Work
from edge.client.flower.replies import ClientPlan, Replies
from fedlearn.app.array_records import arrays_of, record_of
from fedlearn.app.flower import CALL, Packer, flatten, inflate, unpack
from fedlearn.app.message import Head
from fedlearn.update import arrays as update
from server.flower.application.bundle import build
from tests.harness.flower_federation import write_app
from tests.harness.job_plans import job_plan

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

APP = """
import torch
from fedlearn.app.state_dict import load_record, record_of_state_dict
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

def net():
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16 * 36, 10)
    )

@app.train()
def train(message, context):
    if not torch.cuda.is_available():
        raise RuntimeError("no device")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    ours = message.content["config"]["ours"]
    model = net().cuda()
    if ours:
        load_record(model.state_dict(), message.content["arrays"])
    else:
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    batch, labels = torch.randn(256, 1, 8, 8).cuda(), torch.randint(10, (256,)).cuda()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(20):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(batch), labels).backward()
        optimiser.step()
    content = RecordDict({
        "arrays": (record_of_state_dict if ours else ArrayRecord)(model.state_dict()),
        "metrics": MetricRecord({"num-examples": 256}),
    })
    return Message(content, reply_to=message)
"""

Make = Callable[[bool], Replies]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make a client whose job asks for a GPU, or for none."""
    made: list[Replies] = []
    bundle = build(write_app(tmp_path / "source", client=APP))

    def act(gpu: bool) -> Replies:
        spec = replace(job_plan(job="gpu", sites=("north",)).spec)
        limits = AppLimits(gpu=gpu, memory_bytes=16 << 30)
        plan = ClientPlan(spec=spec, site="north", bundle=bundle, limits=limits)
        folder = tmp_path / f"job{len(made)}"
        made.append(Replies(plan, directory=folder, charge=lambda _: None))
        return made[-1]

    yield act
    for each in made:
        each.close()


def start() -> dict[str, update.Array]:
    rng = np.random.default_rng(3)
    shapes = {"0.weight": (16, 1, 3, 3), "0.bias": (16,), "3.weight": (10, 576), "3.bias": (10,)}
    return {name: (rng.normal(size=s) / 10).astype(np.float32) for name, s in shapes.items()}


def ask(replies: Replies, *, ours: bool = False) -> Message:
    replies.load()
    content = RecordDict({"arrays": record_of(start()), "config": ConfigRecord({"ours": ours})})
    packed = Packer().content(content, **{CALL: ConfigRecord({"round": 1})})
    metadata = Metadata(1, "", 1, 5, "", "", time.time(), 600.0, "train")
    flat = flatten([Message(metadata=metadata, content=packed)])
    head, *parts = flat.frames(0)
    names = Head.from_bytes(bytes(head)).parts
    work = Work(id=flat.ids[0], head=bytes(head), objects=dict(zip(names, parts, strict=True)))
    head, *parts = replies.reply(work).frames(0)
    names = Head.from_bytes(bytes(head)).parts
    return inflate(bytes(head), dict(zip(names, parts, strict=True)))


def test_an_app_trains_on_the_gpu_in_its_sandbox_to_the_same_bits(make: Make) -> None:
    digests = set()
    for ours in (False, False, True):
        answer = ask(make(True), ours=ours)
        assert not answer.has_error(), answer.error.reason
        content = unpack(answer.content, max_bytes=1 << 30)
        arrays = arrays_of(next(iter(content.array_records.values())))
        assert not np.array_equal(arrays["3.weight"], start()["3.weight"])
        digests.add(update.digest(arrays))
    assert len(digests) == 1, "two runs, and both ways of moving the model, give the same bits"


def test_an_app_whose_job_asks_for_no_gpu_reaches_none(make: Make) -> None:
    answer = ask(make(False))
    assert answer.has_error()
    assert "no device" in answer.error.reason
