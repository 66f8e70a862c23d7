"""A client that is started again goes on with the bits of one that was not, or is refused."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from edge.client.flower.app_process import Answer
from edge.client.flower.app_state import State
from edge.client.flower.fleet import Work
from edge.client.flower.replies import WITHHELD, ClientPlan, Replies
from edge.client.flower.state_store import StateStore
from fedlearn.app.array_records import record_of, records_of
from fedlearn.app.flower import CALL, STATE, Packer, flatten, inflate
from fedlearn.compression.spec import CompressionSpec
from fedlearn.privacy import PrivacySpec
from fedlearn.sandbox.memory_file import Part, view_of
from server.flower.ipc.task import enter_run
from tests.harness.job_plans import job_plan

TOPK = CompressionSpec(update="topk", fraction=0.25)
SPEC = PrivacySpec(clip=100.0, noise_multiplier=1.0, epsilon=100.0, delta=1e-5)
MODEL = {"w": np.zeros(8, np.float32)}


class Counting:
    """An app whose update is how often it was called, and which keeps that number."""

    alive = True

    def __init__(self) -> None:
        self.calls = 0

    def ask(
        self, question: Mapping[str, Any], message: Sequence[Part], state: State | None
    ) -> Answer:
        if state is not None:
            self.calls = int(bytes(view_of(state[1]))) if state else 0
        self.calls += 1
        draw = np.random.default_rng(self.calls).standard_normal(8).astype(np.float32)
        content = RecordDict(
            {
                "arrays": record_of({"w": draw}),
                "m": MetricRecord({"num-examples": self.calls}),
                STATE: ConfigRecord({"digest": "the word of the app"}),
            }
        )
        kept = (b"head", str(self.calls).encode())
        return Answer(failure=None, content=Packer().content(content), state=kept)

    def drain(self) -> None:
        pass

    def close(self) -> None:
        pass


def client(folder: Path | None, **job: Any) -> Replies:
    enter_run(9)
    store = None
    if folder is not None:
        store = StateStore(folder, job="j", site="a", key=lambda: bytes(32), most=100_000)
    made = Replies(
        ClientPlan(spec=job_plan(**job).spec, site="a", bundle=b""),
        directory=Path("unused"),
        charge=lambda question: None,
        app=Counting(),
        store=store,
    )
    made._installed = object()  # type: ignore[assignment] # the app is loaded
    return made


def asked(replies: Replies, number: int, digest: str = "") -> tuple[list[bytes], str, str]:
    """Return what leaves in a round, the digest with it, and why there is nothing."""
    call: dict[str, Any] = {"round": number} | ({"state": digest} if digest else {})
    content = Packer().content(
        RecordDict({"arrays": record_of(MODEL)}), **{CALL: ConfigRecord(call)}
    )
    flat = flatten([Message(content, 1, "train")])
    work = Work(id="q", head=flat.messages[0], objects=dict(flat.objects))
    answer = replies.reply(work)
    message = inflate(answer.messages[0], answer.objects)
    if message.has_error():
        return [], "", message.error.reason
    stated = message.content.pop(STATE, None)
    sent = [
        bytes(view_of(only.data))
        for record in records_of(message.content, ArrayRecord).values()
        for only in record.values()
    ]
    metrics = next(iter(records_of(message.content, MetricRecord).values()))
    sent.append(str(dict(metrics)).encode())
    return sent, str((stated or {}).get("digest", "")), ""


@pytest.mark.parametrize("compression", [None, TOPK])
def test_a_client_that_is_started_again_after_each_round_sends_the_same_bytes(
    tmp_path: Path, compression: CompressionSpec | None
) -> None:
    whole, expected = client(None, compression=compression), []
    for number in range(1, 5):
        found, digest, _ = asked(whole, number)
        expected.append(found)
        assert digest == ""
    digest = ""
    for number in range(1, 5):
        found, digest, reason = asked(client(tmp_path, compression=compression), number, digest)
        assert (found, reason) == (expected[number - 1], "")
        assert len(digest) == 64
    # Without the state the bytes are others.
    assert asked(client(None, compression=compression), 4)[0] != expected[3]


def test_an_answer_that_was_lost_is_made_again_from_the_state_before_it(tmp_path: Path) -> None:
    first, digest, _ = asked(client(tmp_path), 1)
    lost, _, _ = asked(client(tmp_path), 2, digest)
    again, _, _ = asked(client(tmp_path), 2, digest)
    assert lost == again != first


@pytest.mark.parametrize("private", [False, True])
def test_a_folder_that_was_set_back_ends_in_a_refusal(
    tmp_path: Path, private: bool, caplog: pytest.LogCaptureFixture
) -> None:
    job = {"privacy": SPEC if private else None}
    _, digest, _ = asked(client(tmp_path / "s", **job), 1)
    shutil.copytree(tmp_path / "s", tmp_path / "old")
    _, newest, _ = asked(client(tmp_path / "s", **job), 2, digest)
    shutil.rmtree(tmp_path / "s")
    shutil.copytree(tmp_path / "old", tmp_path / "s")
    restarted = client(tmp_path / "s", **job)
    for _ in range(2):  # it stays refused
        found, _, reason = asked(restarted, 3, newest)
        assert found == []
        assert (WITHHELD if private else "set back to an older one") in reason
    assert "set back to an older one" in caplog.text


def test_a_client_without_a_folder_does_not_go_on_without_its_state(tmp_path: Path) -> None:
    _, digest, _ = asked(client(tmp_path), 1)
    found, _, reason = asked(client(None), 2, digest)
    assert found == []
    assert "this one has no folder for it" in reason


def test_a_client_that_was_not_restarted_reads_nothing(tmp_path: Path) -> None:
    running = client(tmp_path)
    _, digest, _ = asked(running, 1)
    shutil.rmtree(tmp_path)
    found, _, reason = asked(running, 2, digest)
    assert found
    assert reason == ""


def test_under_privacy_the_digest_tells_nothing_about_the_state(tmp_path: Path) -> None:
    digests = {asked(client(tmp_path / str(n), privacy=SPEC), 1)[1] for n in range(3)}
    assert len(digests) == 3
    assert all(len(each) == 64 for each in digests)
