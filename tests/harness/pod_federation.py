"""A whole federation on a real node: charts by real helm, agents and clients in real pods.

Each site is a release of the edge chart in a namespace of its own. The coordinator is outside of
the cluster, as it is in the field, and reached from the pods over the bridge.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fedlearn.local.federation import COORDINATOR, free_port
from tests.harness import cluster
from tests.harness.federation import MARKER, Data, FederationHarness
from tests.harness.real_node import RealNode

USER: Final = 65_532
"""As whom the images run."""
RELEASE: Final = "fedlearn-edge"
DATA: Final = "small"
_HELM_SECONDS: Final = 120


class PodFederation(FederationHarness):
    """A coordinator, and sites that are releases of the chart on ``node``.

    :param image: digest of the image of agents and clients.
    :param kubernetes: the table ``config.kubernetes`` of every site's chart.
    """

    def __init__(
        self,
        folder: Path,
        node: RealNode,
        sites: Sequence[str],
        *,
        image: str,
        kubernetes: Mapping[str, Any],
        **more: Any,
    ) -> None:
        outside = node.host.outside
        listen = {name: f"{outside}:{free_port()}" for name in ("gate", "control", "fleet")}
        server = {"listen": listen, **more.pop("server", {})}
        super().__init__(folder, tuple(sites), server=server, **more)
        self.node = node
        self._digest = image
        self._kubernetes = kubernetes

    # --- sites ------------------------------------------------------------------------

    def join(self, site: str, data: Data) -> None:
        """Install the chart for a site with a token, and let the site in when it asks."""
        self.write_data(site, data)
        # The stand-in for a machine's TEE is the machine's: each client finds its key there.
        key = self.data_folder(site) / "insecure-development.key"
        shutil.copy(self.federation.machines[site].state / key.name, key)
        for path in (self.data_folder(site), *self.data_folder(site).iterdir()):
            os.chown(path, USER, USER)
        folder = self.folder / "sites" / site
        identity = folder / "identity"
        identity.mkdir(mode=0o700)
        os.chown(identity, USER, USER)
        self.volume(site, RELEASE, identity)
        invitation = self.operator.create_token(site)
        token = folder / "token.txt"
        token.touch(mode=0o600)
        token.write_text(invitation.token)
        self.install(site, self.values(site), "--set-file", f"enrollment.token={token}")
        self.volume(f"{site}-clients", DATA, self.data_folder(site))
        self.claim(f"{site}-clients", DATA)
        self.node.wait(lambda: self._status(site) == "pending", f"{site} to enroll", 90)
        self.operator.approve_site(site)

    def _status(self, site: str) -> str:
        found = {state.name: state.status for state in self.operator.list_sites()}
        return found.get(site, "")

    def values(self, site: str) -> dict[str, Any]:
        """Return the values of a site's chart."""
        machine = self.federation.machines[site]
        bundle = hashlib.sha256(self.bundle).hexdigest()
        return {
            "site": {"name": site},
            "image": {"digest": self._digest},
            # The application of these tests is NumPy's: the agent's image is enough.
            "client": {"image": {"digest": self._digest, "repository": "fedlearn/edge"}},
            "workloads": {"namespace": f"{site}-clients"},
            # The coordinator of these tests is a process of the node; nothing enforces a policy.
            "networkPolicy": {"insecureAnyAddress": True},
            "config": {
                "kubernetes": dict(self._kubernetes),
                "launcher": {"start_s": 120, "stop_s": 5},
                "attester": {
                    **machine.table(),
                    "key": "/data/insecure-development.key",
                    "hardware_id": machine.hardware_id.hex(),
                },
                "accept": {"bundles": [bundle]},
                "trust": {"insecure_sample_keys": self.federation.anchors([COORDINATOR])},
                "data": {DATA: {"claim": DATA}},
            },
        }

    def install(self, site: str, values: Mapping[str, Any], *more: str) -> str:
        """Install or upgrade a site's release; return what helm printed."""
        file = self.folder / "sites" / site / "values.json"
        file.write_text(json.dumps(values))
        chart = cluster.ROOT / "helm" / RELEASE
        words = ["upgrade", "--install", "--create-namespace", RELEASE, str(chart)]
        return self.helm(site, *words, "--values", str(file), *more)

    def helm(self, namespace: str, *words: str) -> str:
        """Run real helm in a namespace."""
        done = subprocess.run(
            [str(cluster.assets() / "helm"), *words, "--namespace", namespace],
            check=False,
            capture_output=True,
            text=True,
            timeout=_HELM_SECONDS,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.folder),
                "KUBECONFIG": str(self.node.cluster.admin),
            },
        )
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def volume(self, namespace: str, claim: str, folder: Path) -> None:
        """Make a volume with a folder of this machine, for one claim."""
        spec = {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce", "ReadOnlyMany"],
            "hostPath": {"path": str(folder)},
            "claimRef": {"name": claim, "namespace": namespace},
        }
        body = {"metadata": {"name": f"{namespace}-{claim}"}, "spec": spec}
        self.node.cluster.request("/api/v1/persistentvolumes", "POST", body)

    def claim(self, namespace: str, name: str) -> None:
        """Claim that volume."""
        spec = {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",
            "volumeName": f"{namespace}-{name}",
            "resources": {"requests": {"storage": "1Gi"}},
        }
        path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
        request = self.node.cluster.request
        request(path, "POST", {"metadata": {"name": name}, "spec": spec})

        def bound() -> bool:
            return bool(request(f"{path}/{name}")["status"].get("phase") == "Bound")

        # Else the scheduler would come back to its pod in half a minute only.
        self.node.wait(bound, f"the claim {name} to be bound")

    # --- pods -------------------------------------------------------------------------

    def pods(self, namespace: str) -> list[dict[str, Any]]:
        """Return the pods of a namespace."""
        found = self.node.cluster.request(f"/api/v1/namespaces/{namespace}/pods")
        items: list[dict[str, Any]] = found["items"]
        return items

    def clients(self, site: str, job: str) -> list[dict[str, Any]]:
        """Return the pods of a site's client of a job."""
        return [
            pod
            for pod in self.pods(f"{site}-clients")
            if pod["metadata"]["labels"].get("fedlearn.io/job") == job
        ]

    def marker(self) -> bytes:
        """Return bytes of the model that may be in no file in the clear."""
        return bytes(MARKER.tobytes()[:64])

    def outputs(self) -> str:
        """Return what all pods of all sites wrote, for a person who looks for a fault."""
        found = []
        for site in self.sites:
            for namespace in (site, f"{site}-clients"):
                for pod in self.pods(namespace):
                    name = pod["metadata"]["name"]
                    found.append(f"--- {name}\n{self.node.output(namespace, name)[-2500:]}")
        return "\n".join(found)
