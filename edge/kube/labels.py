"""Names and labels that manifests, charts, selectors and network policies share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = [
    "ASSIGNMENT",
    "CLIENT",
    "CLIENT_COMPONENT",
    "COMPONENT",
    "INSTANCE",
    "JOB",
    "MANAGED_BY",
    "MANAGER",
    "NAME",
    "PART_OF",
    "PRODUCT",
    "SITE",
    "WORKLOAD",
    "client_labels",
    "clients_of",
]

NAME: Final = "app.kubernetes.io/name"
INSTANCE: Final = "app.kubernetes.io/instance"
COMPONENT: Final = "app.kubernetes.io/component"
PART_OF: Final = "app.kubernetes.io/part-of"
MANAGED_BY: Final = "app.kubernetes.io/managed-by"

JOB: Final = "fedlearn.io/job"
SITE: Final = "fedlearn.io/site"
ASSIGNMENT: Final = "fedlearn.io/assignment"

CLIENT: Final = "fedlearn.io/client"
"""Annotation: the name of the client in its SPIFFE id."""
WORKLOAD: Final = "fedlearn.io/workload"
"""Annotation: the workload digest, in hexadecimal digits."""

PRODUCT: Final = "fedlearn"
CLIENT_COMPONENT: Final = "client"
MANAGER: Final = "fedlearn-edge"


def client_labels(*, job: str, site: str, assignment: str) -> dict[str, str]:
    """Return the labels of everything that belongs to one client."""
    return {
        NAME: f"{PRODUCT}-{CLIENT_COMPONENT}",
        INSTANCE: assignment,
        COMPONENT: CLIENT_COMPONENT,
        PART_OF: PRODUCT,
        MANAGED_BY: MANAGER,
        JOB: job,
        SITE: site,
        ASSIGNMENT: assignment,
    }


def clients_of(site: str) -> Mapping[str, str]:
    """Return the labels that all clients of ``site`` have, for a label selector."""
    return {MANAGED_BY: MANAGER, COMPONENT: CLIENT_COMPONENT, SITE: site}
