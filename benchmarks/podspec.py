"""Measures manifests a second: a job must never wait for a site's agent.

    python benchmarks/podspec.py [--json]

Prints manifests a second for each kind of workload, and the ratio to the required 5,000.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

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


def main() -> int:
    """Run the benchmark; fail below the required rate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    rates = {kind: rate(kind) for kind in KINDS}
    if arguments.json:
        print(json.dumps({"promised": PROMISED, "manifests_per_s": rates}, indent=1))
    else:
        for kind, found in rates.items():
            times = found / PROMISED
            print(f"{kind:24} {found:10,.0f} manifests a second, {times:6.1f} x promised")
    return 0 if min(rates.values()) >= PROMISED else 1


if __name__ == "__main__":
    sys.exit(main())
