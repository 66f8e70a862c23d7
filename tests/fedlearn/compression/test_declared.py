"""The ``[compression]`` table of a job: what it may state, and who refuses it."""

from __future__ import annotations

import dataclasses

import pytest

from attestation.config import InconsistentValues
from fedlearn.compression.spec import CompressionSpec
from fedlearn.config import read
from fedlearn.errors import ConfigError
from fedlearn.job.spec import JobSpec

JOB = f"""
name = "heart"
app = "app"
rounds = 3
sites = ["north", "south"]
policy = "policy.toml"
policy_digest = "{bytes(32).hex()}"
"""
PRIVACY = """
[privacy]
mechanism = "central-gaussian"
clip = 1.0
noise_multiplier = 2.0
epsilon = 8.0
delta = 1e-5
"""


def job(table: str, *, privacy: bool = False) -> JobSpec:
    return JobSpec.from_toml(JOB + (PRIVACY if privacy else "") + f"[compression]\n{table}\n")


@pytest.mark.parametrize(
    ("table", "title", "feedback"),
    [
        ('update = "bf16"', "bf16", False),
        ('update = "fp16"\ndelta = false', "fp16 of the weights", False),
        ('update = "int8"', "int8 with error feedback", True),
        ('update = "int8"\ndelta = false', "int8 of the weights", False),
        ('update = "bf16"\nerror_feedback = true', "bf16 with error feedback", True),
        ('update = "topk"', "topk 0.01 with error feedback", True),
        ('update = "topk"\nfraction = 0.1\nerror_feedback = false', "topk 0.1", False),
        ('arrays = ["lora_*"]', "none of lora_*", False),
        ('update = "none"', "", False),
    ],
)
def test_a_job_declares_it_and_keeps_it(table: str, title: str, feedback: bool) -> None:
    spec = job(table)
    assert (spec.compression.title, spec.compression.error_feedback) == (title, feedback)
    assert JobSpec.from_toml(spec.to_toml()) == spec
    assert JobSpec.from_json(spec.to_json()) == spec
    assert (spec.digest() == JobSpec.from_toml(JOB).digest()) is (not title)


@pytest.mark.parametrize(
    ("table", "stated"),
    [
        ('update = "zstd"', 'compression.update: must be one of "none", "bf16", "fp16", "int8"'),
        ('update = "topk"\nfraction = 0', "compression.fraction: must be a number from 0.000001"),
        ('update = "topk"\ndelta = false', "compression.delta: must be true for"),
        ('update = "int8"\nfraction = 0.1', 'compression.fraction: only for update = "topk"'),
        ('update = "none"\ndelta = true', "compression.delta: needs an update = that compresses"),
        ("error_feedback = true", "compression.error_feedback: needs an update = that compresses"),
        ('update = "int8"\ndelta = false\nerror_feedback = true', "needs delta = true"),
        ('update = "int8"\nlevels = 4', "compression.levels: unknown key"),
        ("arrays = [1]", "compression.arrays[0]: must be text"),
        ('arrays = ["a", "a"]', "is listed twice"),
    ],
)
def test_a_table_that_cannot_be_is_refused(table: str, stated: str) -> None:
    with pytest.raises(ConfigError) as caught:
        job(table)
    assert stated in str(caught.value)


@pytest.mark.parametrize(
    ("table", "stated"),
    [
        ('update = "int8"', "compression.error_feedback: must be false with [privacy]"),
        ('update = "bf16"\ndelta = false', "compression.delta: must be true with [privacy]"),
    ],
)
def test_privacy_excludes_what_changes_the_bound_of_an_update(table: str, stated: str) -> None:
    with pytest.raises(ConfigError) as caught:
        job(table, privacy=True)
    assert stated in str(caught.value)
    assert job('update = "int8"\nerror_feedback = false', privacy=True).compression.active


def test_a_client_that_does_not_know_compression_refuses_the_job_by_name() -> None:
    """A job on the wire has the table, and a reader without it names the key."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Older:
        """The keys of a release without compression, but for those that it would read."""

    table = {"compression": job('update = "int8"').to_table()["compression"]}
    with pytest.raises(ConfigError, match="compression: unknown key"):
        read(Older, table, where="the job")
    assert '"compression"' in job('update = "int8"').to_json()
    assert "compression" not in JobSpec.from_toml(JOB).to_table()


def test_values_that_exclude_each_other_cannot_be_made_in_code() -> None:
    with pytest.raises(InconsistentValues, match="delta"):
        CompressionSpec(update="topk", delta=False)
    assert CompressionSpec().names(["a", "b"]) == ["a", "b"]
    assert CompressionSpec(arrays=("lora_[ab]",)).names(["lora_a", "lora_c"]) == ["lora_a"]
