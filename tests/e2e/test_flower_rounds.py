"""Jobs with real processes and sockets: rounds, their cost, the same bits, and interruptions."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from server.flower.job_plan import Outcome
from server.flower.job_runner import JobRunner
from tests.harness.flower_federation import (
    CLIENT_APP,
    Channel,
    During,
    FlowerFederation,
    ended,
    make_plan,
    write_app,
)

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    from server.flower.application.bundle import build

    return build(write_app(tmp_path_factory.mktemp("src") / "app"))


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[FlowerFederation]:
    made = FlowerFederation(tmp_path)
    yield made
    made.close()


Run = Callable[..., tuple[Outcome, Channel]]


@pytest.fixture
def run(federation: FlowerFederation, bundle: bytes) -> Run:
    """Run a job to its end; return outcome and channel."""

    def go(
        *, channel: Channel | None = None, during: During | None = None, **plan: Any
    ) -> tuple[Outcome, Channel]:
        made = make_plan(bundle, **plan)
        host, channel = federation.host(made, channel=channel)
        for site in made.spec.sites:
            federation.client(made, site)
        host.start()
        if during is not None:
            during(host, channel)
        outcome = ended(host, 60)
        host.close()
        assert outcome is not None
        return outcome, channel

    return go


def _bits(channel: Channel) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in channel.models[-1].items()}


def test_a_round_costs_less_than_half_a_second_and_repeats_to_the_bit(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    first, given = run(job="one", rounds=4)
    assert (first.status, first.rounds) == ("finished", 4)
    seconds = [fields["seconds"] for fields in given.of("round.finished")]
    with capsys.disabled():
        print(f"\n  rounds of 4 sites: {', '.join(f'{each:.3f} s' for each in seconds)}")
    assert min(seconds[1:]) < 0.5
    assert len(given.of("update.received")) == 16
    assert [fields["round"] for fields in given.of("round.started")] == [1, 2, 3, 4]
    # A client's state lives on between rounds: the app counts its calls there.
    assert {e["metrics"]["calls"] for e in given.of("update.received") if e["round"] == 4} == {4.0}

    second, again = run(job="two", rounds=4)
    assert second.status == "finished"
    assert _bits(again) == _bits(given)

    other, changed = run(job="three", rounds=4, seed=8)
    assert other.status == "finished"
    assert _bits(changed) != _bits(given)


def test_the_exact_mean_agrees_with_flowers(run: Run) -> None:
    flower, theirs = run(job="stock", sites=2)
    exact, ours = run(job="exact", sites=2, strategy="fedavg")
    assert flower.status == exact.status == "finished"
    for name, array in ours.models[-1].items():
        np.testing.assert_allclose(array, theirs.models[-1][name], rtol=1e-5)
    assert ours.models[-1]["1"].dtype == np.int64


def test_a_rule_over_single_updates_repeats_to_the_bit(run: Run) -> None:
    plan: dict[str, Any] = {"sites": 3, "rounds": 2, "strategy": "geomedian"}
    (first, given), (second, again) = (run(job=job, **plan) for job in ("one", "two"))
    assert first.status == second.status == "finished"
    assert _bits(given) == _bits(again)
    assert given.models[-1]["1"].dtype == np.int64


def test_a_job_reports_that_its_strategy_replaces_that_of_the_app(run: Run) -> None:
    same, quiet = run(job="same", sites=2, rounds=1, strategy="fedavg")
    other, loud = run(
        job="other", sites=2, rounds=1, strategy="fedavg", run_config={"strategy": "FedAdam"}
    )
    assert same.status == other.status == "finished"
    assert not [entry for entry in quiet.of("log") if "replaces" in entry["line"]]
    (entry,) = [entry for entry in loud.of("log") if "replaces" in entry["line"]]
    assert entry["level"] == "warning"
    assert 'the job\'s strategy "fedavg" replaces that of the app, FedAdam' in entry["line"]


def test_a_job_whose_rounds_made_no_model_fails_and_each_skipped_round_is_an_event(
    federation: FlowerFederation, tmp_path: Path
) -> None:
    from server.flower.application.bundle import build

    weightless = CLIENT_APP.replace('10 + context.node_config["index"]', "0")
    bundle = build(write_app(tmp_path / "weightless", client=weightless))
    plan = make_plan(bundle, job="no-model", sites=2, rounds=2)
    host, channel = federation.host(plan)
    for site in plan.spec.sites:
        federation.client(plan, site)
    host.start()
    outcome = ended(host, 60)
    host.close()
    assert (outcome.status, outcome.code) == ("failed", "round")
    assert outcome.message.startswith("none of the 2 rounds made a model: the strategy made no")
    assert [fields["round"] for fields in channel.of("round.skipped")] == [1, 2]
    # What was sealed is the first model, to go on from; it is not reported as the result.
    assert len(channel.checkpoints) == 2


@pytest.mark.parametrize("name", ["FedAdam", "FedMedian"])
def test_strategies_of_flower_run_unchanged_and_resume_to_the_bit(run: Run, name: str) -> None:
    # A round without a pause is over in 30 ms: the kill would come after the job.
    config = {"strategy": name, "pause": 0.5}
    whole, expected = run(job="whole", sites=2, rounds=3, run_config=config)
    assert whole.status == "finished", whole

    def kill(host: JobRunner, channel: Channel) -> None:
        channel.wait_for("round.finished", 2)
        os.kill(random.choice(host.pids), signal.SIGKILL)
        assert ended(host, 30).code == "crashed"
        host.start()

    resumed, channel = run(job="killed", sites=2, rounds=3, run_config=config, during=kill)
    assert resumed.status == "finished", resumed
    assert channel.of("job.started")[-1]["resumed_from"] >= 2
    assert _bits(channel) == _bits(expected)


@pytest.mark.parametrize("strategy", ["app", "fedavg"])
def test_a_job_killed_in_the_middle_of_a_round_ends_with_the_same_bits(
    run: Run, strategy: str
) -> None:
    config = {"pause": 0.2}
    whole, expected = run(job="whole", sites=2, run_config=config, strategy=strategy)
    assert whole.status == "finished"

    def kill(host: JobRunner, channel: Channel) -> None:
        for started in (1, 3):
            channel.wait_for("round.started", started)
            time.sleep(0.1)
            os.kill(random.choice(host.pids), signal.SIGKILL)
            assert ended(host, 30).code == "crashed"
            host.start()

    killed, channel = run(job="killed", sites=2, run_config=config, strategy=strategy, during=kill)
    assert killed.status == "finished", killed
    assert len(channel.of("job.started")) == 3
    assert _bits(channel) == _bits(expected)


def test_an_exception_of_an_app_is_one_site_short_of_the_quorum(run: Run) -> None:
    fails, channel = run(job="strict", sites=2, run_config={"fail-on": "site-1"})
    assert (fails.status, fails.code) == ("failed", "quorum")
    assert "planted failure" in channel.of("update.rejected")[0]["reason"]

    goes_on, given = run(job="lax", sites=2, quorum=1, run_config={"fail-on": "site-1"})
    assert goes_on.status == "finished"
    assert {fields["site"] for fields in given.of("update.received")} == {"site-0"}


def test_a_killed_client_does_not_hold_up_a_round(run: Run, federation: FlowerFederation) -> None:
    def kill(host: JobRunner, channel: Channel) -> None:
        channel.wait_for("round.started", 2)
        federation.clients[-1].kill()

    begun = time.monotonic()
    outcome, channel = run(job="lossy", sites=3, quorum=2, run_config={"pause": 0.5}, during=kill)
    assert outcome.status == "finished", outcome
    assert time.monotonic() - begun < 30
    assert channel.of("round.finished")[-1]["sites"] == 2


@pytest.mark.parametrize("strategy", ["app", "fedavg"])
def test_an_update_of_a_revoked_site_is_not_in_the_round(
    run: Run, federation: FlowerFederation, strategy: str
) -> None:
    from datetime import UTC, datetime

    revoked: list[str] = []

    def revoke(host: JobRunner, channel: Channel) -> None:
        channel.wait_for("update.received", 1)
        site = channel.of("update.received")[0]["site"]
        thumbprint = federation.identities[site]["thumbprint"]
        federation.registry.revoke(thumbprint, "planted", now=datetime.now(UTC))
        host.delete_node(site)
        revoked.append(site)

    config = {"pause": 0.3}
    outcome, channel = run(
        job="revoked", sites=3, quorum=2, strategy=strategy, run_config=config, during=revoke
    )
    assert outcome.status == "finished", outcome
    assert channel.of("round.finished")[-1]["sites"] == 2
    last = channel.of("update.received")[-2:]
    assert len(revoked) == 1
    assert revoked[0] not in {fields["site"] for fields in last}


def test_a_job_that_is_late_fails_or_goes_on_by_its_rule(run: Run) -> None:
    late, _ = run(job="late", sites=2, seconds=6.0, stragglers="fail", run_config={"pause": 60.0})
    assert (late.status, late.code) == ("failed", "quorum")
    assert "did not answer" in late.message


def test_cancel_ends_a_job_at_once(run: Run) -> None:
    def cancel(host: JobRunner, channel: Channel) -> None:
        channel.wait_for("round.started")
        host.cancel("enough")

    outcome, _ = run(job="stopped", sites=2, run_config={"pause": 5.0}, during=cancel)
    assert (outcome.status, outcome.message) == ("cancelled", "enough")


def test_a_budget_that_is_spent_ends_the_job(federation: FlowerFederation, bundle: bytes) -> None:

    from fedlearn.errors import PrivacyError
    from fedlearn.privacy import PrivacySpec

    class Spent(Channel):
        def charge(self, stage: int, round_: int, inputs: bytes) -> None:
            if round_ == 2:
                raise PrivacyError("the budget is spent", hint="ask for fewer rounds")

    spec = PrivacySpec(clip=0.5, noise_multiplier=1.0, epsilon=100.0, delta=1e-5)
    plan = make_plan(bundle, sites=2, job="spent", privacy=spec, noise_secret=b"s" * 32)
    host, channel = federation.host(plan, channel=Spent(lambda: federation.live("spent")))
    for site in plan.spec.sites:
        federation.client(plan, site)
    host.start()
    outcome = ended(host, 60)
    assert (outcome.code, outcome.message) == ("privacy", "the budget is spent")
    assert len(channel.checkpoints) == 1


def test_privacy_is_applied_outside_of_user_code(
    federation: FlowerFederation, bundle: bytes
) -> None:

    from fedlearn.privacy import PrivacySpec

    spec = PrivacySpec(clip=0.5, noise_multiplier=1.0, epsilon=100.0, delta=1e-5)
    models = []
    for job in ("p-one", "p-two"):
        plan = make_plan(bundle, job=job, sites=2, rounds=2, privacy=spec, noise_secret=b"s" * 32)
        host, channel = federation.host(plan)
        for site in plan.spec.sites:
            federation.client(plan, site)
        host.start()
        outcome = ended(host, 60)
        assert outcome is not None
        assert outcome.status == "finished", outcome
        host.close()
        models.append(_bits(channel))
        received = channel.of("update.received")
        assert {(fields["examples"], tuple(fields["metrics"])) for fields in received} == {(1, ())}
    assert models[0] == models[1]


@pytest.mark.parametrize(
    ("changes", "strategy"),
    [
        ({"mechanism": "distributed-gaussian", "shares": 2}, "app"),
        ({"clip_quantile": 0.5, "clip_noise": 1.0}, "app"),
        ({"mechanism": "local-gaussian"}, "geomedian"),
    ],
)
def test_each_place_of_the_noise_and_each_clip_runs_to_the_end(
    federation: FlowerFederation, bundle: bytes, changes: dict[str, Any], strategy: str
) -> None:
    from fedlearn.privacy import PrivacySpec

    spec = PrivacySpec(clip=0.5, noise_multiplier=1.0, epsilon=100.0, delta=1e-5, **changes)
    sites = 3 if strategy == "geomedian" else 2
    plan = make_plan(
        bundle,
        job=f"place-{strategy}-{len(changes)}",
        sites=sites,
        rounds=2,
        quorum=sites,
        strategy=strategy,
        privacy=spec,
        noise_secret=b"s" * 32,
    )
    host, channel = federation.host(plan)
    for site in plan.spec.sites:
        federation.client(plan, site)
    host.start()
    outcome = ended(host, 60)
    host.close()
    assert outcome is not None
    assert outcome.status == "finished", outcome
    assert len(channel.checkpoints) == 2
    received = channel.of("update.received")
    assert len(received) == 2 * sites
    assert {(fields["examples"], tuple(fields["metrics"])) for fields in received} == {(1, ())}


def test_a_crash_while_sites_evaluate_releases_nothing_new(
    federation: FlowerFederation, tmp_path: Path
) -> None:

    from fedlearn.privacy import PrivacySpec
    from server.flower.application.bundle import build

    client = CLIENT_APP.replace(
        'metrics = MetricRecord({"num-examples": 10,',
        'time.sleep(1.0)\n    metrics = MetricRecord({"num-examples": 10,',
    )
    app = build(write_app(tmp_path / "slow", client=client))
    spec = PrivacySpec(clip=0.5, noise_multiplier=1.0, epsilon=100.0, delta=1e-5)
    plan = make_plan(app, job="sealed", sites=2, rounds=2, privacy=spec, noise_secret=b"s" * 32)
    host, channel = federation.host(plan)
    for site in plan.spec.sites:
        federation.client(plan, site)
    host.start()
    with channel.changed:
        assert channel.changed.wait_for(lambda: channel.checkpoints, 60)
    for pid in host.pids:
        os.kill(pid, signal.SIGKILL)
    outcome = ended(host, 20)
    assert outcome.code == "crashed"
    assert not channel.of("round.finished")
    host.start()
    outcome = ended(host, 60)
    host.close()
    assert outcome is not None
    assert outcome.status == "finished", outcome
    # The model of round 1 was read back from its seal, and evaluated; it was not made again.
    assert [each.round for each in channel.checkpoints] == [1, 2]
    assert [(stage, number) for stage, number, _ in channel.charged] == [(1, 1), (1, 2)]
    assert channel.of("job.started")[-1]["resumed_from"] == 1


def test_a_client_without_the_privacy_of_its_job_is_refused(
    federation: FlowerFederation, bundle: bytes
) -> None:
    from fedlearn.privacy import PrivacySpec

    spec = PrivacySpec(clip=0.5, noise_multiplier=1.0, epsilon=100.0, delta=1e-5)
    plan = make_plan(bundle, job="cheat", sites=2, privacy=spec, noise_secret=b"s" * 32)
    host, channel = federation.host(plan)
    for site in plan.spec.sites:
        federation.client(plan, site, cheats=True)
    host.start()
    outcome = ended(host, 60)
    assert outcome.code == "quorum"
    # Under privacy the ledger and people learn that it was refused, and never why.
    assert "no reason is given" in channel.of("update.rejected")[0]["reason"]
    assert channel.checkpoints == []


def test_a_certificate_is_renewed_under_a_running_client(
    federation: FlowerFederation, bundle: bytes, tmp_path: Path
) -> None:
    import threading
    from datetime import UTC, datetime

    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from edge.client.flower.warm_client import ClientPlan, Identity, WarmClient

    def identity(admitted: dict[str, Any]) -> Identity:
        key = load_pem_private_key(admitted["key"].encode(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return Identity(
            chain=tuple(x509.load_pem_x509_certificates(admitted["chain"].encode())),
            key=key,
            authorities=(federation.root,),
        )

    plan = make_plan(bundle, job="renewed", sites=1, rounds=4, run_config={"pause": 0.4})
    host, channel = federation.host(plan)
    first = federation.admit(plan.spec.name, "site-0")
    client = WarmClient(
        ClientPlan(
            spec=plan.spec,
            site="site-0",
            bundle=bundle,
            node_config={"site": "site-0", "index": 0},
            patience=10,
        ),
        address=f"127.0.0.1:{federation.address[1]}",
        identity=identity(first),
        charge=lambda question: None,
        directory=tmp_path / "client-app",
    )
    reported: list[str] = []
    thread = threading.Thread(target=lambda: reported.append(client.run()), daemon=True)
    thread.start()
    host.start()
    channel.wait_for("round.started", 2)
    client.renew(identity(federation.admit(plan.spec.name, "site-0")))
    federation.registry.revoke(first["thumbprint"], "replaced", now=datetime.now(UTC))
    outcome = ended(host, 60)
    assert outcome.status == "finished", outcome
    host.close()
    thread.join(10)
    assert reported == ["the job has finished"]
    calls = [fields["metrics"]["calls"] for fields in channel.of("update.received")]
    assert calls == [1, 2, 3, 4]
