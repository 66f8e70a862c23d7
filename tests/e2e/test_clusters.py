"""A federation whose sites are clusters: real control planes, clients as pods.

Two edge clusters, each with its own API server, scheduler and controllers; the clients are
processes of pods that these placed, admitted over mutual TLS like any other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.harness.cluster import Cluster
from tests.harness.cluster_federation import ClusterFederation
from tests.harness.cluster_site import ClusterSite
from tests.harness.federation import FederationHarness
from tests.harness.node import Node

pytestmark = pytest.mark.e2e

SITES = ("site-a", "site-b")


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Cluster]]:
    """Two control planes at once."""
    made = [Cluster(tmp_path_factory.mktemp(site)) for site in SITES]
    try:
        # Each ends with the thread that started it, so the threads have to stay.
        with ThreadPoolExecutor(len(made)) as pool:
            list(pool.map(lambda cluster: cluster.start(), made))
            yield made
    finally:
        for cluster in made:
            cluster.stop()


@pytest.fixture(scope="module")
def harness(
    clusters: list[Cluster], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ClusterFederation]:
    """A coordinator, and an agent in each cluster with two nodes."""
    folder = tmp_path_factory.mktemp("federation")
    places = {}
    for site, cluster in zip(SITES, clusters, strict=True):
        place = ClusterSite(cluster, folder / "places" / site)
        data = folder / "sites" / site / "data"
        for name in ("one", "two"):
            place.node(name, folders={"small": data})
        places[site] = place
    try:
        with ClusterFederation(folder, places) as running:
            yield running
    finally:
        for place in places.values():
            place.close()


def _clients(harness: ClusterFederation, site: str) -> list[tuple[Node, str]]:
    """The pods of a site that run: their node and name."""
    return [(node, pod) for node in harness.places[site].nodes for pod in node.pods()]


def _until(so: Callable[[], Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < end, f"not so within {seconds} s"
        time.sleep(0.1)


def _pods_of(harness: ClusterFederation, site: str, pod: str) -> list[str]:
    """All pods that were ever started for the client that ``pod`` belongs to."""
    started = [name for node in harness.places[site].nodes for name in node.started()]
    return [name for name in started if name.rsplit("-", 1)[0] == pod.rsplit("-", 1)[0]]


def test_a_federated_training_runs_to_the_end(harness: ClusterFederation) -> None:
    job = harness.run("through")
    admitted = job.ledger("admission")
    assert sorted({entry["site"] for entry in admitted}) == list(SITES)
    assert [entry["phase"] for entry in job.ledger("round")].count("started") == 3
    assert harness.digest("through")
    for site in SITES:
        assert '"launcher": "kubernetes"' in harness.operator.get_site(site).capabilities


def test_it_gives_the_same_bits_as_processes(
    harness: ClusterFederation, shared: FederationHarness
) -> None:
    job = harness.job("bits")
    for site in SITES:
        assert (shared.data[site][0] == harness.data[site][0]).all()
    job.submit().finish()
    shared.run("bits", sites=list(SITES))
    assert harness.digest("bits") == shared.digest("bits")


def test_a_client_that_is_evicted_in_a_round_comes_back(harness: ClusterFederation) -> None:
    job = harness.job("evicted", rounds=4, config={"wait": 1.0}, deadline_s=120).submit()
    job.wait_for("round.started", 2)
    ((_, pod),) = _clients(harness, "site-a")
    harness.places["site-a"].evict(pod)
    job.finish(seconds=150)
    assert len(job.ledger("admission")) >= 3
    assert pod not in [name for _, name in _clients(harness, "site-a")]


def test_a_killed_agent_adopts_its_client(harness: ClusterFederation) -> None:
    job = harness.job("adopted", rounds=4, config={"wait": 1.0}, deadline_s=120).submit()
    job.wait_for("round.started", 2)
    before = _clients(harness, "site-b")
    harness.restart_agent("site-b")
    job.finish(seconds=120)
    assert len(before) == 1
    assert _pods_of(harness, "site-b", before[0][1]) == [before[0][1]]


def test_an_adopted_client_has_a_client_service_again(harness: ClusterFederation) -> None:
    """What replaces its pod asks the new agent for its start and for a voucher."""
    job = harness.job("registered", rounds=5, config={"wait": 1.0}, deadline_s=120).submit()
    job.wait_for("round.started", 1)
    ((_, pod),) = _clients(harness, "site-b")
    harness.restart_agent("site-b")
    harness.federation.await_connected(["site-b"])
    harness.places["site-b"].evict(pod)
    job.finish(seconds=150)
    assert len(_pods_of(harness, "site-b", pod)) >= 2
    assert [entry["site"] for entry in job.ledger("admission")].count("site-b") >= 2


def test_a_training_goes_on_while_an_api_server_is_away(harness: ClusterFederation) -> None:
    """What runs needs no control plane: clients speak to the coordinator themselves."""
    job = harness.job("headless", rounds=4, config={"wait": 1.0}, deadline_s=120).submit()
    job.wait_for("round.started", 1)
    cluster = harness.places["site-a"].cluster
    cluster.kill_api_server()
    try:
        job.finish(seconds=120)
    finally:
        cluster.restart_api_server()
    assert {e.site for e in job.of("update.received") if e.round == 4} == set(SITES)


def test_a_site_comes_back_when_its_node_was_lost_in_a_round(harness: ClusterFederation) -> None:
    job = harness.job(
        "lost", rounds=40, config={"wait": 1.0}, quorum=1, stragglers="drop", deadline_s=20
    ).submit()
    job.wait_for("round.started", 2)
    place = harness.places["site-a"]
    ((node, pod),) = _clients(harness, "site-a")
    node.lose()
    try:
        _until(lambda: [name for _, name in _clients(harness, "site-a") if name != pod], 120)
        before = max(event.round for event in job.of("round.started"))
        job.wait_for("update.received", 1, seconds=60, site="site-a", round=before + 2)
    finally:
        harness.operator.cancel_job("lost")
        place.nodes.remove(node)
        node.stop()
    assert [entry["site"] for entry in job.ledger("admission")].count("site-a") >= 2


def test_a_site_that_is_removed_in_a_round_is_cut_off(harness: ClusterFederation) -> None:
    job = harness.job(
        "removed", rounds=3, config={"wait": 1.0}, quorum=1, stragglers="drop", deadline_s=20
    ).submit()
    job.wait_for("round.started", 1)
    harness.operator.remove_site("site-b")
    job.finish(seconds=120)
    last = {event.site for event in job.of("update.received") if event.round == 3}
    assert last == {"site-a"}
    # The agent has learned it: it stopped its clients, and ended.
    assert harness.agent("site-b").wait(30) not in (None, 0)
    assert harness.places["site-b"].jobs() == {}
    assert _clients(harness, "site-b") == []
