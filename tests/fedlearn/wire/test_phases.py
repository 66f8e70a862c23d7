"""Phases cross the wire as numbers, and as texts from and for the version before that."""

from __future__ import annotations

import pytest

from fedlearn.errors import ConfigError
from fedlearn.job.phase import Phase
from fedlearn.wire import fedlearn_pb2 as pb
from fedlearn.wire.phases import phase_fields, phase_of


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("kind", [pb.WorkloadStatus, pb.ClientState])
def test_a_phase_arrives_and_an_older_version_reads_its_text(
    kind: type[pb.WorkloadStatus | pb.ClientState], phase: Phase
) -> None:
    sent = kind(reason="x", **phase_fields(phase))
    received = kind.FromString(sent.SerializeToString())
    assert phase_of(received) is phase
    assert received.phase == phase.value
    # What an older version sends has no number.
    assert phase_of(kind(phase=phase.value)) is phase


def test_every_number_but_zero_is_a_phase() -> None:
    numbers = pb.WorkloadStatus.Phase.DESCRIPTOR.values_by_number
    assert {
        phase_of(pb.WorkloadStatus(state=value.name)) for number, value in numbers.items() if number
    } == set(Phase)


@pytest.mark.parametrize(
    "message",
    [
        pb.WorkloadStatus(),
        pb.WorkloadStatus(phase="dancing"),
        pb.WorkloadStatus(phase="RUNNING"),
        pb.WorkloadStatus.FromString(b"\x20\x63"),
        pb.ClientState.FromString(b"\x12\x07running\x20\x63"),
    ],
    ids=["nothing", "text", "upper case", "number", "number beside a text"],
)
def test_what_is_no_phase_is_refused(message: pb.WorkloadStatus | pb.ClientState) -> None:
    with pytest.raises(ConfigError, match="is no phase"):
        phase_of(message)
