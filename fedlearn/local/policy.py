"""The appraisal policy for the simulated machines of a federation on one machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from attestation.evidence import Tee
from fedlearn.identity.software import software_digest
from fedlearn.local.federation import COORDINATOR, Federation
from fedlearn.local.machines import Machine

__all__ = ["coordinator_table", "policy_text"]


def policy_text(
    federation: Federation, *, name: str, bundle: bytes, app: str, sites: Iterable[str]
) -> str:
    """Return the appraisal policy of the demo.

    It affirms only the named bundle, on the listed machines, and the pinned coordinator.
    """
    tee = federation.tee.value
    insecure = str(federation.tee is Tee.SAMPLE).lower()
    machines = federation.machines
    software = software_digest().hex()
    firmware = _FIRMWARE if federation.tee is Tee.TPM else ""
    nodes = "\n".join(f'{site} = ["{machines[site].hardware_id.hex()}"]' for site in sites)
    return f"""\
# Which clients are admitted to the job {name!r}. What is not named here is refused.
version = 1
name = "{name}"
accept = ["{tee}"]
insecure_sample = {insecure}

[[reference]]
claim = "app"
value = "{bundle.hex()}"
name = "{app}"

[[reference]]
claim = "software"
value = "{software}"
name = "this installation of fedlearn"
{firmware.replace("WHO", "reference")}
[require]
claims = ["software", "app", "job"]

[nodes]
{nodes}

[coordinator]
version = 1
name = "{name}-coordinator"
accept = ["{tee}"]
insecure_sample = {insecure}

[[coordinator.reference]]
claim = "software"
value = "{software}"
name = "this installation of fedlearn"
{firmware.replace("WHO", "coordinator.reference")}
[coordinator.nodes]
{coordinator_table(machines[COORDINATOR])}
"""


_FIRMWARE: Final = f"""
[[WHO]]
claim = "pcr.0"
value = "{bytes(32).hex()}"
name = "software TPM: nothing measured its boot"
"""


def coordinator_table(machine: Machine) -> str:
    """Return the line that pins the coordinator's hardware."""
    return f'{COORDINATOR} = ["{machine.pinned_id.hex()}"]'
