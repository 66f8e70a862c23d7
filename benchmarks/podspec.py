"""Measures manifests a second: a job must never wait for a site's agent.

Manifests a second for each kind of workload; 5,000 are required.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from _report import at_least, measured, options, show

from edge.config.kubernetes import Devices, KubernetesSettings
from edge.kube.client_object import Launch
from edge.kube.pod_manifest import manifest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.harness import cluster_site  # noqa: E402

PROMISED = 5_000
IMAGE = "registry.example/fedlearn-client@sha256:" + "ab" * 32
KINDS = {
    "confidential-containers": KubernetesSettings(
        image=IMAGE, runtime_class="kata-qemu-tdx", devices=Devices(tee="tdx.intel.com/tdx-guest")
    ),
    "kubevirt": KubernetesSettings(image=IMAGE, workload="kubevirt", tee="snp"),
    "confidential-cluster": KubernetesSettings(image=IMAGE, workload="confidential-cluster"),
}


def rate(kind: str, *, seconds: float = 0.5) -> float:
    """Return manifests a second, in this thread's own time."""
    workload = cluster_site.workload("a", gpu=1, data="medpar")
    launch = Launch(agent_address="agent:8453", pin=bytes(32), ticket=bytes(32))
    settings = KINDS[kind]
    count, began = 0, time.thread_time()
    while (spent := time.thread_time() - began) < seconds:
        for _ in range(50):
            manifest(workload, settings, launch)
        count += 50
    return count / spent


def main() -> None:
    """Measure each kind of workload."""
    arguments = options(__doc__).parse_args()
    seconds, repeat = (0.05, 1) if arguments.quick else (0.5, 5)
    rows = []
    for kind in KINDS:
        rates = [rate(kind, seconds=seconds) for _ in range(repeat)]
        rows.append(
            measured(
                f"manifests of {kind}",
                unit="a second",
                ours=rates,
                target=[at_least(PROMISED)],
                how="in the time of one thread",
            )
        )
    show(rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
