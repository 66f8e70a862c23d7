"""An agent on a real stream: it adopts, follows an order once, and ends when its site is gone."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from attestation.policy.parse import parse_policy
from attestation.policy.sign import operator_key_digest, sign_policy
from edge.agent import agent as agents
from edge.agent.agent import Agent
from edge.agent.client_callbacks import ClientCallbacks
from edge.agent.policy_versions import PolicyMemory
from edge.config.site import Accept, Caps, DataSet, SiteConfig
from edge.protocol.identity import SiteIdentity
from edge.protocol.rpc import enroll
from edge.protocol.workload import Workload
from fedlearn.errors import FedlearnError, LaunchError, NotEnrolled
from fedlearn.job.assignment import Assignment
from fedlearn.job.owner_key import owner_key_text
from fedlearn.job.phase import Phase
from fedlearn.job.spec import JobSpec, workload_digest
from server.identity.site import SiteStatus
from server.rpc import StartOrder
from tests.harness.deployment import new_key
from tests.harness.listeners import DeploymentListeners
from tests.harness.passes import passes

JOB = """
name = "alpha"
app = "app"
rounds = 1
sites = ["site-c"]
policy = "policy.toml"
"""
POLICY = b'version = 1\nname = "p"\naccept = []\n'


class Clients:
    """A launcher whose clients are names."""

    kind = "process"

    def __init__(self, running: tuple[str, ...] = ()) -> None:
        self.there = list(running)
        self.launched: list[str] = []
        self.workloads: dict[str, Workload] = {}
        self.stopped: list[tuple[str, str]] = []
        self.closed = False

    def with_callbacks(self, callbacks: ClientCallbacks) -> Clients:
        self.callbacks = callbacks
        return self

    def launch(self, workload: Workload) -> None:
        self.workloads[workload.assignment.id] = workload
        self.launched.append(workload.assignment.id)
        if workload.assignment.id not in self.there:
            self.there.append(workload.assignment.id)

    def stop(self, assignment: str, reason: str) -> None:
        self.stopped.append((assignment, reason))
        if assignment in self.there:
            self.there.remove(assignment)

    def running(self) -> tuple[str, ...]:
        return tuple(self.there)

    def capabilities(self) -> Mapping[str, Any]:
        return {"launcher": self.kind}

    def close(self) -> None:
        self.closed = True


class Site:
    """``site-c`` with an agent that can be run in a thread, and orders for it."""

    def __init__(self, listeners: DeploymentListeners, folder: Path) -> None:
        self.listeners = listeners
        self.order_key = new_key()
        self.folder = folder
        token = listeners.deployment.sites.invitations.create_token("site-c", needs_approval=False)
        text = dataclasses.replace(token, address=listeners.gate).encode()
        self.identity = self._known(enroll(text))
        self.bundle = listeners.coordinator.bundle
        self.raised: list[FedlearnError] = []
        self._running: list[tuple[Agent, threading.Thread]] = []

    def _known(self, identity: SiteIdentity) -> SiteIdentity:
        public = self.order_key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return dataclasses.replace(
            identity, control_address=self.listeners.control, order_key=public
        )

    def agent(
        self,
        clients: Clients,
        *,
        identity: SiteIdentity | None = None,
        policy_keys: tuple[bytes, ...] = (),
        other_bundles: str = "insecure-accept",
        limit: float | None = None,
        **caps: Any,
    ) -> Agent:
        config = SiteConfig(
            state=self.folder,
            accept=Accept(other_bundles=other_bundles, policy_keys=policy_keys),
            data={
                "d": DataSet(path=self.folder, epsilon=limit, delta=None if limit is None else 1e-6)
            },
            caps=Caps(**caps),
        )
        made = Agent(config, identity or self.identity, launcher=clients.with_callbacks)

        def run() -> None:
            try:
                made.run()
            except FedlearnError as error:
                self.raised.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._running.append((made, thread))
        return made

    def order(
        self,
        identity: str,
        *,
        key: ec.EllipticCurvePrivateKey | None = None,
        policy: bytes = POLICY,
        text: str = JOB,
        **changes: Any,
    ) -> None:
        """Send a signed assignment; ``key`` signs it, or the coordinator's own."""
        spec = JobSpec.from_toml(text, policy=parse_policy(policy))
        digest = hashlib.sha256(self.bundle).digest()
        now = datetime.now(UTC)
        assignment = Assignment(
            id=identity,
            job=spec.name,
            site="site-c",
            spec=spec.to_json(),
            bundle=digest,
            policy=policy.decode(),
            workload=workload_digest(spec.digest(), digest),
            issued=now - timedelta(minutes=1),
            expires=now + timedelta(hours=1),
        )
        assignment = dataclasses.replace(assignment, **changes)
        order = StartOrder(
            assignment_json=assignment.to_bytes(), signature=assignment.sign(key or self.order_key)
        )
        eventually(lambda: "site-c" in self.listeners.coordinator.orders)
        self.listeners.coordinator.orders["site-c"].send(order)

    def output(self, identity: str) -> list[tuple[str, str]]:
        """What the agent reported of an assignment: phases and reasons."""
        return [
            (what[2], what[3])
            for kind, what in self.listeners.coordinator.calls
            if kind == "workload" and what[1] == identity
        ]

    def close(self) -> None:
        for agent, thread in self._running:
            agent.stop()
            thread.join(10)
            assert not thread.is_alive()


def eventually(so: Callable[[], Any], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


@pytest.fixture
def site(listeners: DeploymentListeners, tmp_path: Path) -> Iterator[Site]:
    made = Site(listeners, tmp_path)
    yield made
    made.close()


# --- a site that is gone ------------------------------------------------------------------


def test_an_agent_whose_site_is_removed_stops_its_clients_and_ends(site: Site) -> None:
    clients = Clients()
    site.agent(clients)
    site.order("a-1")
    eventually(lambda: clients.launched == ["a-1"])
    site.listeners.deployment.sites.remove("site-c")
    eventually(lambda: site.raised)
    assert isinstance(site.raised[0], NotEnrolled)
    assert "removed by the coordinator's operator" in str(site.raised[0])
    assert site.raised[0].hint
    assert [name for name, _ in clients.stopped] == ["a-1"]
    assert "removed" in clients.stopped[0][1]
    assert clients.closed


def test_an_agent_that_was_away_learns_it_and_stops_the_clients_of_its_earlier_life(
    site: Site,
) -> None:
    site.listeners.deployment.sites.remove("site-c")
    clients = Clients(running=("a-old",))
    site.agent(clients)
    eventually(lambda: site.raised)
    assert isinstance(site.raised[0], NotEnrolled)
    assert [name for name, _ in clients.stopped] == ["a-old"]


def test_a_token_that_is_void_ends_the_agent_too(site: Site) -> None:
    """Its certificate has run out meanwhile: only the token could bring it back."""
    site.listeners.deployment.sites.remove("site-c")
    clients = Clients(running=("a-old",))
    site.agent(clients, identity=dataclasses.replace(site.identity, chain=b""))
    eventually(lambda: site.raised)
    assert isinstance(site.raised[0], NotEnrolled)
    assert "void" in str(site.raised[0])
    assert clients.running() == ()


def test_a_site_that_waits_for_approval_keeps_its_clients_and_its_agent(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "_LONGEST_PAUSE", 0.2)
    clients = Clients(running=("a-old",))
    sites = site.listeners.deployment.sites
    pending = dataclasses.replace(sites._records._known["site-c"], status=SiteStatus.PENDING)
    sites._records._known["site-c"] = pending
    site.agent(clients)
    time.sleep(1.0)
    assert site.raised == []
    assert clients.stopped == []
    sites.approve("site-c")
    eventually(lambda: site.listeners.coordinator.connected.is_set())


def test_a_lost_coordinator_ends_nothing(site: Site) -> None:
    clients = Clients(running=("a-old",))
    site.agent(clients)
    eventually(lambda: site.listeners.coordinator.connected.is_set())
    site.listeners.stop()
    time.sleep(0.5)
    assert site.raised == []
    assert clients.stopped == []


# --- orders that are none -----------------------------------------------------------------


def _nothing_comes_of_it(site: Site, clients: Clients) -> None:
    """Orders are taken one after the other: when the last was, so was the first."""
    site.order("a-good")
    eventually(lambda: clients.launched)
    assert clients.launched == ["a-good"]
    assert site.output("a-bad") == []


def test_an_order_with_a_bad_signature_is_not_followed(site: Site) -> None:
    clients = Clients()
    site.agent(clients)
    site.order("a-bad", key=new_key())
    _nothing_comes_of_it(site, clients)


def test_an_order_for_another_site_is_not_followed(site: Site) -> None:
    clients = Clients()
    site.agent(clients)
    site.order("a-bad", site="site-b")
    _nothing_comes_of_it(site, clients)


def test_an_order_that_has_expired_is_not_followed(site: Site) -> None:
    clients = Clients()
    site.agent(clients)
    site.order("a-bad", expires=datetime.now(UTC) - timedelta(seconds=1))
    _nothing_comes_of_it(site, clients)


def test_an_order_against_the_sites_rules_is_refused_in_words(site: Site) -> None:
    clients = Clients()
    site.agent(clients, other_bundles="refuse")
    site.order("a-1")
    eventually(lambda: site.output("a-1"))
    phase, reason = site.output("a-1")[0]
    assert phase == "refused"
    assert "is not in accept.bundles of this site" in reason
    assert clients.launched == []


LOGGED = JOB + f'owner_key = "{owner_key_text(bytes(range(32)))}"\napp_logs = "sealed"\n'
PRIVACY = {
    "mechanism": "central-gaussian",
    "clip": 1.0,
    "noise_multiplier": 2.0,
    "epsilon": 8.0,
    "delta": 1e-5,
}


def test_a_site_runs_a_job_without_the_logs_that_it_does_not_allow_and_states_it(
    site: Site,
) -> None:
    clients = Clients()
    site.agent(clients)
    site.order("a-1", text=LOGGED)
    eventually(lambda: clients.launched)
    assert site.output("a-1")[0] == (
        "accepted",
        'without the app\'s logs: accept.app_logs of this site is "off"',
    )


def test_a_job_with_logs_and_privacy_is_not_started_though_the_coordinator_signed_it(
    site: Site,
) -> None:
    clients = Clients()
    site.agent(clients)
    spec = JobSpec.from_toml(LOGGED, policy=parse_policy(POLICY))
    forged = json.loads(spec.to_json()) | {"privacy": PRIVACY}
    site.order("a-1", text=LOGGED, spec=json.dumps(forged))
    eventually(lambda: site.output("a-1"))
    phase, reason = site.output("a-1")[-1]
    assert phase == "failed"
    assert "no budget of [privacy] counts them" in reason
    assert clients.launched == []


def test_code_that_is_not_what_was_ordered_is_not_started(site: Site) -> None:
    clients = Clients()
    site.agent(clients)
    site.order("a-1")
    eventually(lambda: clients.launched)
    site.listeners.coordinator.bundle = b"other code"
    site.order("a-2", job="beta")
    eventually(lambda: site.output("a-2"))
    assert site.output("a-2")[-1][0] == "failed"
    assert "not the one that the order names" in site.output("a-2")[-1][1]
    assert clients.launched == ["a-1"]


def test_an_agent_reads_an_order_once_and_hashes_its_code_once(site: Site) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    signature = sign_policy(parse_policy(POLICY), key)
    clients = Clients()
    with passes(site.bundle, caller=False) as counted:
        site.agent(clients, policy_keys=(operator_key_digest(key.public_key()),))
        site.order("a-1", policy_signature=signature)
        eventually(lambda: clients.launched)
    assert counted == {"spec": 1, "policy": 1, "hash": 1}


# --- adopting, and once only --------------------------------------------------------------


def test_a_client_that_runs_here_already_is_adopted_whatever_the_cap(site: Site) -> None:
    clients = Clients(running=("a-1",))
    site.agent(clients, jobs=1)
    site.order("a-1")
    eventually(lambda: clients.launched == ["a-1"])
    # The twin: another one has to wait for it.
    site.order("a-2")
    eventually(lambda: site.output("a-2"))
    assert site.output("a-2")[0][0] == "accepted"
    assert "1 jobs run here" in site.output("a-2")[0][1]
    assert clients.launched == ["a-1"]


def test_an_adopted_client_that_the_rules_refuse_now_is_stopped(site: Site) -> None:
    clients = Clients(running=("a-1",))
    site.agent(clients, other_bundles="refuse")
    site.order("a-1")
    eventually(lambda: site.output("a-1"))
    assert site.output("a-1")[0][0] == "refused"
    assert clients.stopped[0][0] == "a-1"


@pytest.mark.parametrize(
    ("ended", "reported"),
    [
        (Phase.FAILED, "its client failed: no memory is left"),
        (
            Phase.SUCCEEDED,
            "its client failed: it ended before the end of the job (no memory is left)",
        ),
        (Phase.STOPPED, "its client failed: it was stopped before the end of the job"),
        (Phase.REFUSED, "its client was refused: no memory is left"),
    ],
)
def test_an_assignment_is_never_started_twice(site: Site, ended: Phase, reported: str) -> None:
    clients = Clients()
    site.agent(clients)
    site.order("a-1")
    eventually(lambda: clients.launched == ["a-1"])
    clients.there.clear()
    cause = "" if ended is Phase.STOPPED else "no memory is left"
    clients.callbacks.report("a-1", ended, cause)
    site.order("a-1")
    # The coordinator does not count what was reported before, so another order shows the end.
    site.order("a-2")
    eventually(lambda: len(clients.launched) >= 2)
    phase, reason = site.output("a-1")[-1]
    # One sentence with its cause, whoever repeats it.
    assert Phase(phase).ended(reason) == reported
    assert clients.launched == ["a-1", "a-2"]


# --- policies of before -------------------------------------------------------------------


def test_an_older_version_of_a_signed_policy_is_refused_until_it_is_forgotten(
    site: Site,
) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    clients = Clients()

    def order(identity: str, version: int) -> None:
        text = f'version = {version}\nname = "p"\naccept = ["tpm"]\n'.encode()
        signature = sign_policy(parse_policy(text), key)
        site.order(identity, policy=text, policy_signature=signature)

    keys = (operator_key_digest(key.public_key()),)
    site.agent(clients, policy_keys=keys, jobs=10)
    order("a-2", 2)
    eventually(lambda: clients.launched == ["a-2"])
    order("a-1", 1)
    eventually(lambda: site.output("a-1"))
    ((phase, reason),) = site.output("a-1")
    assert phase == "refused"
    assert "version 1 of the policy 'p' is older than 2" in reason
    # The same version goes on, and a newer one.
    order("a-2b", 2)
    order("a-3", 3)
    eventually(lambda: clients.launched == ["a-2", "a-2b", "a-3"])
    PolicyMemory(site.folder).forget("p")
    order("a-1b", 1)
    eventually(lambda: clients.launched[-1] == "a-1b")


def test_a_client_that_runs_by_an_older_policy_is_adopted(site: Site) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    text = b'version = 1\nname = "p"\naccept = ["tpm"]\n'
    policy = parse_policy(text)
    PolicyMemory(site.folder).remember(parse_policy(text.replace(b"1", b"2", 1)))
    clients = Clients(running=("a-old",))
    site.agent(clients, policy_keys=(operator_key_digest(key.public_key()),), jobs=10)
    site.order("a-old", policy=text, policy_signature=sign_policy(policy, key))
    eventually(lambda: clients.launched == ["a-old"])
    assert clients.stopped == []
    assert PolicyMemory(site.folder).seen()["p"].version == 2


# --- the budget of the site's data --------------------------------------------------------


def private(name: str) -> str:
    """A job of six rounds that costs epsilon 3.02 at delta 1e-6; two cost 4.44, three 5.58."""
    return (
        JOB.replace("alpha", name).replace("rounds = 1", "rounds = 6")
        + '[privacy]\nmechanism = "central-gaussian"\nclip = 1.0\nnoise_multiplier = 4.0\n'
        + "epsilon = 8.0\ndelta = 1e-6\n"
    )


def test_a_job_that_the_budget_does_not_pay_for_is_refused_and_another_ends_first(
    site: Site,
) -> None:
    clients = Clients()
    site.agent(clients, limit=5.0)
    for number in (1, 2):
        site.order(f"a-{number}", text=private(f"job-{number}"))
    site.order("a-3", text=private("job-3"))
    eventually(lambda: site.output("a-3"))
    assert clients.launched == ["a-1", "a-2"]
    phase, reason = site.output("a-3")[0]
    assert phase == "refused"
    assert "6 rounds of the job bring the data set d to epsilon 5.582" in reason
    site.order("a-4")
    eventually(lambda: site.output("a-4"))
    assert "the data set d has a privacy budget" in site.output("a-4")[0][1]
    # One update of the first leaves, and it ends: five of its six rounds are free again.
    clients.callbacks.charge_for(clients.workloads["a-1"], "q1")
    clients.there.remove("a-1")
    clients.callbacks.report("a-1", Phase.SUCCEEDED, "finished")
    with pytest.raises(FedlearnError, match="does not run here"):
        clients.callbacks.charge_for(clients.workloads["a-1"], "q2")
    site.order("a-5", text=private("job-3"))
    eventually(lambda: "a-5" in clients.launched)


def test_an_agent_that_comes_back_gives_back_what_an_ended_client_did_not_use(site: Site) -> None:
    clients = Clients()
    first = site.agent(clients, limit=5.0)
    for number in (1, 2):
        site.order(f"a-{number}", text=private(f"job-{number}"))
        eventually(functools.partial(clients.launched.__contains__, f"a-{number}"))
    clients.callbacks.charge_for(clients.workloads["a-1"], "q1")
    first.stop()
    eventually(lambda: clients.closed)
    site.listeners.coordinator.orders.clear()
    # The client of a-1 has ended while nobody looked; that of a-2 is adopted.
    later = Clients(running=("a-2",))
    site.agent(later, limit=5.0)
    site.order("a-2", text=private("job-2"))
    site.order("a-3", text=private("job-3"))
    eventually(lambda: later.launched == ["a-2", "a-3"])
    later.callbacks.charge_for(later.workloads["a-2"], "q1")


def test_a_client_that_cannot_be_started_costs_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = Clients()

    def launch(workload: Workload) -> None:
        raise LaunchError("no room")

    monkeypatch.setattr(clients, "launch", launch)
    site.agent(clients, limit=5.0)
    for number in range(3):
        site.order(f"a-{number}", text=private(f"job-{number}"))
        name = f"a-{number}"
        eventually(lambda: ("failed", "no room") in site.output(name))  # noqa: B023


def test_a_budget_that_was_altered_stops_new_jobs_with_a_reason(site: Site) -> None:
    clients = Clients()
    site.agent(clients, limit=5.0)
    site.order("a-1", text=private("job-1"))
    eventually(lambda: clients.launched == ["a-1"])
    path = site.folder / "privacy-budget"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    site.order("a-2", text=private("job-2"))
    eventually(lambda: site.output("a-2"))
    assert site.output("a-2")[-1][0] == "failed"
    assert "privacy-budget: was altered" in site.output("a-2")[-1][1]
    assert clients.launched == ["a-1"]
