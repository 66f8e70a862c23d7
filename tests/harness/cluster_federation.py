"""A whole federation, with sites in clusters: agents start their clients as pods.

Coordinator, agents and clients are the processes that :mod:`tests.harness.federation` starts,
but for this: a client is the process of a pod, which the site's real scheduler placed on a node.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedlearn.local.federation import Party, program
from tests.harness import cluster
from tests.harness.cluster_site import ClusterSite
from tests.harness.federation import Data, FederationHarness

CLAIM = "small"


class ClusterFederation(FederationHarness):
    """A federation whose sites are namespaces with an agent's account (``ClusterSite``)."""

    def __init__(self, folder: Path, places: Mapping[str, ClusterSite], **more: Any) -> None:
        super().__init__(folder, tuple(places), **more)
        self.places = places
        self._ports = {site: cluster.reserve_port() for site in places}
        self._as_processes = self.federation.site_table
        self.federation.site_table = self._as_pods  # type: ignore[method-assign]

    def join(self, site: str, data: Data) -> None:
        """Give a site its data as a claim, and let it join."""
        self.data_folder(site).mkdir(parents=True, exist_ok=True)
        self.places[site].claim(CLAIM, self.data_folder(site))
        super().join(site, data)

    def restart_agent(self, site: str) -> None:
        """Kill a site's agent, as a lost node does, and start another on the same state."""
        agent = self.agent(site)
        os.killpg(agent.pid, signal.SIGKILL)
        agent.wait(10)
        self.children._all.remove(agent)
        config = self.federation.parties[site].config
        self.children.start(site, [program("fedlearn-edge"), "run", "--config", config])

    def _as_pods(self, party: Party, bundle: bytes) -> dict[str, object]:
        table: dict[str, object] = self._as_processes(party, bundle)
        place, port = self.places[party.name], self._ports[party.name]
        settings = place.settings()
        table["launcher"] = {"kind": "kubernetes"}
        table["data"] = {CLAIM: {"claim": CLAIM}}
        # A pod's state is new each time; the stand-in for a machine's TEE is the machine's.
        table["attester"] = {
            "kind": "insecure-sample",
            "key": str(self.federation.identity_folder(party.name) / "insecure-development.key"),
            "hardware_id": party.machine.hardware_id.hex(),
        }
        table["kubernetes"] = {
            "kubeconfig": str(settings.kubeconfig),
            "namespace": settings.namespace,
            "workload": settings.workload,
            "image": settings.image,
            "sponsor_listen": f"127.0.0.1:{port}",
            "sponsor_address": f"127.0.0.1:{port}",
            "placement": {
                "node_selector": dict(settings.placement.node_selector),
                "unreachable_s": settings.placement.unreachable_s,
            },
        }
        return table
