"""Wrap a rendered chart as a ManifestWork, so that an Open Cluster Management hub installs it.

    helm template fedlearn-edge helm/fedlearn-edge --namespace fedlearn --values site.yaml \\
        | python tools/manifest_work.py --namespace fedlearn --cluster hospital-a \\
        | kubectl --context hub apply -f -

Hooks are left out, because a hub runs none. A Secret is refused, because everyone who may read the
ManifestWork at the hub could read it. Make the Secret with the join token in the cluster, and name
it in ``enrollment.existingSecret``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

import yaml

from edge.kube.pod_manifest import manifest_work

CLUSTER_WIDE: Final = frozenset(
    {
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "Namespace",
        "PersistentVolume",
        "PriorityClass",
        "RuntimeClass",
        "StorageClass",
    }
)


class Refused(Exception):
    """The manifests cannot be wrapped; the message is the reason."""


def wrapped(
    manifests: Iterable[Mapping[str, Any]], *, name: str, namespace: str, cluster: str
) -> dict[str, Any]:
    """Return the ManifestWork.

    :raises Refused: when there is a Secret, or nothing at all.
    """
    kept: list[dict[str, Any]] = []
    for manifest in manifests:
        metadata = dict(manifest["metadata"])
        if "helm.sh/hook" in (metadata.get("annotations") or {}):
            continue
        if manifest["kind"] == "Secret":
            raise Refused(
                f"the Secret {metadata['name']} would be readable at the hub: make it in the "
                "cluster itself, and name it in enrollment.existingSecret"
            )
        if manifest["kind"] not in CLUSTER_WIDE:
            metadata.setdefault("namespace", namespace)
        kept.append({**manifest, "metadata": metadata})
    if not kept:
        raise Refused("there are no manifests on standard input")
    names = {one["metadata"]["name"] for one in kept if one["kind"] == "Namespace"}
    if namespace not in names:
        own = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        kept.insert(0, own)
    # Namespaces come first, before the objects in them.
    kept.sort(key=lambda one: one["kind"] != "Namespace")
    return manifest_work(kept, name=name, cluster=cluster)


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cluster", required=True, help="the cluster's namespace at the hub")
    parser.add_argument("--namespace", default="fedlearn", help="of the release, in the cluster")
    parser.add_argument("--name", default="fedlearn-edge", help="of the ManifestWork")
    arguments = parser.parse_args()
    try:
        found = [one for one in yaml.safe_load_all(sys.stdin) if one]
        work = wrapped(
            found,
            name=arguments.name,
            namespace=arguments.namespace,
            cluster=arguments.cluster,
        )
    except (Refused, yaml.YAMLError, KeyError, TypeError) as error:
        print(f"manifest_work: {error}", file=sys.stderr)
        return 1
    json.dump(work, sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
