"""A strategy over masked updates, and the clients' own code at its other end."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from attestation.config import InconsistentValues
from edge.client.flower.masking import MaskedUpdates
from fedlearn.app.array_records import record_of
from fedlearn.app.flower import MASKED, SECAGG
from fedlearn.compression.spec import CompressionSpec
from fedlearn.errors import JobError, QuorumNotReached, RoundError, UpdateRejected
from fedlearn.job.spec import JobSpec
from fedlearn.privacy import PrivacySpec
from fedlearn.secure_aggregation import messages
from fedlearn.secure_aggregation.fixed_point import encoded, mean, zeros
from fedlearn.secure_aggregation.spec import SecAggSpec
from fedlearn.update.arrays import Array
from server.flower.aggregation.builtin import BuiltIn
from server.flower.aggregation.secure.answers import checked
from server.flower.aggregation.secure.strategy import SecureMean
from tests.harness.job_plans import job_plan
from tests.server.flower.aggregation.robust.sites import FEW
from tests.server.flower.aggregation.secure_sites import SecureSites, round_of

SITES = tuple("abcdef")
MODEL: dict[str, Array] = {"w": np.linspace(-1, 1, 50, dtype="f4"), "n": np.asarray(4)}
PARAMETERS = SecAggSpec(threshold=0.51, clip_range=2.0)


PRIVACY = PrivacySpec(epsilon=4.0, delta=1e-5, clip=1.0, noise_multiplier=1.0)


def spec(
    *,
    parameters: SecAggSpec = PARAMETERS,
    quorum: int = 3,
    more: Mapping[str, Any] = MappingProxyType({}),
    **plan: Any,
) -> JobSpec:
    secure = {"secure": "secagg+", "secagg": parameters, **more}
    return job_plan(sites=SITES, quorum=quorum, aggregation=secure, **plan).spec


def updates(seed: int = 1) -> dict[str, tuple[dict[str, Array], int]]:
    draw = np.random.default_rng(seed)
    return {
        site: (
            {"w": MODEL["w"] + draw.normal(0, 0.5, 50).astype("f4"), "n": np.asarray(9)},
            int(draw.integers(1, 500)),
        )
        for site in SITES
    }


def by_hand(sent: Any, sites: str = "abcdef") -> Any:
    total = zeros(PARAMETERS, MODEL)
    for site in sites:
        total += encoded(PARAMETERS, sent[site][0], MODEL, sent[site][1])
    return mean(PARAMETERS, total, MODEL, len(sites))[0]


def started(**options: Any) -> tuple[SecureMean, SecureSites, Any]:
    job, sent = spec(), updates()
    return SecureMean("fedavg", FEW, job), SecureSites(job, sent, **options), sent


@pytest.mark.parametrize("persist", [False, True])
@pytest.mark.parametrize("parameters", [PARAMETERS, SecAggSpec(neighbours=4, clip_range=2.0)])
def test_the_model_is_that_of_the_unmasked_sum_bit_for_bit(
    parameters: SecAggSpec, persist: bool
) -> None:
    job, sent = spec(parameters=parameters), updates()
    strategy, grid = SecureMean("fedavg", FEW, job), SecureSites(job, sent, persist=persist)
    for number in (1, 2):
        found = round_of(strategy, grid, MODEL, number)
        assert found["w"].tobytes() == by_hand(sent)["w"].tobytes()
        assert found["n"] == 4
    assert grid.validator.masked == {MASKED: ({"uint64"}, (51,))}
    assert grid.checks == 2
    assert not grid.noted


@pytest.mark.parametrize("stage", ["advertise", "share", "receive", "train", "unmask"])
def test_a_site_that_is_lost_at_a_stage_is_left_out_and_no_earlier(stage: str) -> None:
    strategy, grid, sent = started()
    grid.lost = {stage: {"c"}}
    found = round_of(strategy, grid, MODEL)
    expected = by_hand(sent, "abcdef" if stage == "unmask" else "abdef")
    assert found["w"].tobytes() == expected["w"].tobytes()


def test_too_few_sites_at_a_stage_are_an_error() -> None:
    for stage in ("advertise", "share", "receive", "train"):
        strategy, grid, _ = started()
        grid.lost = {stage: set("abcd")}
        with pytest.raises(QuorumNotReached):
            round_of(strategy, grid, MODEL)
    strategy, grid, _ = started()
    grid.lost = {"unmask": set("abcd")}
    with pytest.raises(QuorumNotReached, match=r"cannot be unmasked: a: \d shares of a secret"):
        round_of(strategy, grid, MODEL)


def test_an_optimiser_works_on_the_mean_as_without_masks() -> None:
    job, sent = spec(), updates()
    options = {**FEW, "eta": 0.5}
    secure = SecureMean("fedadam", options, job)
    found = round_of(secure, SecureSites(job, sent), MODEL)
    plain = BuiltIn("fedadam", options)
    grid = SecureSites(job, sent)
    list(plain.configure_train(1, record_of(MODEL), ConfigRecord(), grid))
    expected = plain._optimised(1, by_hand(sent))
    assert found["w"].tobytes() == expected["w"].numpy().tobytes()


def test_a_site_is_not_evaluated() -> None:
    strategy, grid, _ = started()
    assert not list(strategy.configure_evaluate(1, record_of(MODEL), ConfigRecord(), grid))


# --- what clients refuse --------------------------------------------------------------


def test_a_round_is_unmasked_again_with_the_same_sites_only() -> None:
    strategy, grid, sent = started(persist=True)
    first = round_of(strategy, grid, MODEL)
    again = round_of(strategy, grid, MODEL)
    assert again["w"].tobytes() == first["w"].tobytes()
    # Without one of them, the difference of both sums would be its update.
    grid.lost = {"train": {"c"}}
    with pytest.raises(QuorumNotReached):
        round_of(strategy, grid, MODEL)
    assert "round 1 was unmasked with other sites" in grid.noted["a"]
    found = round_of(strategy, grid, MODEL, 2)
    assert found["w"].tobytes() == by_hand(sent, "abdef")["w"].tobytes()


def test_survivors_that_were_refused_do_not_count_as_unmasked() -> None:
    strategy, grid, sent = started()
    grid.changed = lambda stage, site, body: (
        messages.write_numbers([0]) if stage == "unmask" else body
    )
    with pytest.raises(QuorumNotReached):
        round_of(strategy, grid, MODEL)
    grid.changed = lambda stage, site, body: body
    assert round_of(strategy, grid, MODEL)["w"].tobytes() == by_hand(sent)["w"].tobytes()


def test_a_site_with_another_roster_drops_out_by_itself() -> None:
    strategy, grid, sent = started()

    def changed(stage: str, site: str, body: bytes) -> bytes:
        if stage != "share" or site != "c":
            return body
        roster = [each for each in messages.read_roster(body) if each.site != "f"]
        return messages.write_roster(roster, [])

    grid.changed = changed
    found = round_of(strategy, grid, MODEL)
    # What it shared is not for the neighbours that the others know.
    assert "shares are for each neighbour" in grid.noted["c"]
    assert found["w"].tobytes() == by_hand(sent, "abdef")["w"].tobytes()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "has a session and a body"),
        ({"stage": "share", "session": bytes(16), "body": b""}, "no session .* for round 1"),
        ({"stage": "share", "session": "x", "body": b""}, "has a session and a body"),
        ({"stage": "advertise", "session": b"short", "body": b""}, "a round and 16 bytes"),
    ],
)
def test_questions_out_of_order_are_refused(content: dict[str, Any], words: str) -> None:
    _, grid, _ = started()
    asked = RecordDict({SECAGG: ConfigRecord(content)} if content else {})
    with pytest.raises((JobError, RoundError, UpdateRejected), match=words):
        grid.clients["a"].answer(asked, 1)


def test_an_unknown_stage_and_an_update_without_a_session_are_refused() -> None:
    _, grid, sent = started()
    client, session = grid.clients["a"], bytes(16)

    def asked(stage: str) -> RecordDict:
        return RecordDict({SECAGG: ConfigRecord({"stage": stage, "session": session, "body": b""})})

    answer = RecordDict({"u": record_of(sent["a"][0])})
    model = RecordDict({"a": record_of(MODEL)})
    with pytest.raises(RoundError, match="no session of secure aggregation for round 1"):
        client.masked(answer, model, 1)
    client.answer(asked("advertise"), 1)
    with pytest.raises(JobError, match="'both secrets' is not a stage"):
        client.answer(asked("both secrets"), 1)
    with pytest.raises(RoundError, match="no session of secure aggregation for round 2"):
        client.answer(asked("share"), 2)
    with pytest.raises(UpdateRejected, match="is one ArrayRecord and one MetricRecord"):
        client.masked(answer, model, 1)


def test_an_update_weighs_no_more_than_the_records_that_its_client_committed_to() -> None:
    strategy, grid, sent = started()
    grid.clients["c"] = MaskedUpdates(
        grid.spec, "c", weighted_by="num-examples", most_examples=sent["c"][1] - 1
    )
    grid.clients["d"] = MaskedUpdates(
        grid.spec, "d", weighted_by="num-examples", most_examples=sent["d"][1]
    )
    found = round_of(strategy, grid, MODEL)
    assert "this client has committed to" in grid.noted["c"]
    assert found["w"].tobytes() == by_hand(sent, "abdef")["w"].tobytes()


# --- what the aggregator refuses ------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({SECAGG: ConfigRecord({"stage": "share", "session": b"", "body": "text"})}),
        RecordDict({SECAGG: ConfigRecord({"stage": "share", "session": b""})}),
        RecordDict(
            {
                SECAGG: ConfigRecord({"stage": "share", "session": b"", "body": b""}),
                "more": ConfigRecord({"data": b"of a patient"}),
            }
        ),
    ],
)
def test_an_answer_with_anything_else_is_refused(content: RecordDict) -> None:
    with pytest.raises(UpdateRejected, match="holds stage, session and body"):
        checked(content)


SINGLE = "needs more than the sum of the updates"


@pytest.mark.parametrize(
    ("plan", "key", "words"),
    [
        ({"strategy": "krum", "quorum": 6}, "strategy.name", SINGLE),
        ({"strategy": "scaffold"}, "strategy.name", SINGLE),
        ({"strategy": "feddyn", "options": {"alpha": 0.1}}, "strategy.name", SINGLE),
        (
            {"strategy": "fedavg", "options": {"over_select": 1.5, "fraction_train": 0.6}},
            "strategy.options.over_select",
            "costs the others its masks",
        ),
        ({"quorum": 2}, "aggregation.secure", "a round of this job may have 2"),
        ({"compression": CompressionSpec(update="int8")}, "compression", "fill all bits"),
        ({"privacy": PRIVACY}, "privacy", "checks that each update is clipped"),
        ({"more": {"updates": "visible-to-app"}}, "aggregation.updates", "shows the app single"),
        (
            {"strategy": "fedavg", "options": {"fraction_train": 0.4}, "quorum": 6},
            "aggregation.secure",
            "a round of this job may have 2",
        ),
        (
            {"parameters": SecAggSpec(max_weight=2**29 - 1, bits=33)},
            "aggregation.secagg.max_weight",
            "modulus_bits is 64",
        ),
    ],
)
def test_a_job_that_needs_single_updates_cannot_hide_them(
    plan: dict[str, Any], key: str, words: str
) -> None:
    with pytest.raises(InconsistentValues, match=f"{key}.*{words}"):
        spec(**plan)


def test_a_job_keeps_its_parameters_and_others_their_digests() -> None:
    job = spec(parameters=SecAggSpec(neighbours=4, bits=16))
    assert JobSpec.from_json(job.to_json()) == job
    assert JobSpec.from_toml(job.to_toml()) == job
    assert job.digest() != spec().digest()
    plain = job_plan(sites=SITES, quorum=3).spec
    assert plain.to_table()["aggregation"] == {"updates": "aggregated"}
    assert plain.digest() != spec().digest()
