"""Checks that the NVIDIA devices of one evidence are all different, and of one machine.

In *Protected PCIe* mode the GPUs of a machine exchange data through its NVSwitches without
encryption. Data of one GPU is protected only if every switch to which it is connected, and every
GPU on these switches, is genuine. Such evidence has a report of each. The links in the reports
(:attr:`~.quotes.nvidia.NvidiaReport.linked_pdis`) must agree, as in NVIDIA's own verifier
(https://github.com/NVIDIA/nvtrust, ``validate_topology``):

* every GPU is in that mode, and is connected to the same switches, one at least;
* the evidence has a report of each of these switches, and of no other;
* every switch connects the same GPUs, and as many as there are reports.

A GPU's report does not state which of the PDIs is its own, so the reports are counted instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from attestation.errors import EndorsementError
from attestation.evidence import Claims, Tee

__all__ = ["check_devices"]

_STEP: Final = "nvidia topology"
_COMPLETE: Final = "send the report of every GPU and every NVSwitch of the machine"


def check_devices(components: Sequence[Claims]) -> tuple[Claims, ...]:
    """Return the components with the claim ``nvidia.topology`` where it was checked.

    The claim is the SHA-256 over the sorted PDIs of switches and GPUs. It is made in Protected
    PCIe mode, when every NVIDIA component was verified.

    :raises EndorsementError: when two reports are of one device, or the topology has a gap.
    """
    devices = {
        f"component[{index}]": item
        for index, item in enumerate(components)
        if item.tee is Tee.NVIDIA
    }
    _check_distinct(devices)
    switches = _pick(devices, "nvidia.kind", "nvswitch")
    protected = _pick(devices, "nvidia.protected_pcie", True)
    if not (switches or protected) or any(item.unverified for item in devices.values()):
        return tuple(components)
    gpus = {name: item for name, item in devices.items() if name not in switches}
    topology = _check_links(gpus, switches)
    words = f"{len(gpus)} GPUs, {len(switches)} NVSwitches"
    return tuple(
        replace(
            item,
            measurements={**item.measurements, "nvidia.topology": topology},
            attributes={**item.attributes, "nvidia.topology": words},
        )
        if item.tee is Tee.NVIDIA
        else item
        for item in components
    )


def _check_distinct(devices: Mapping[str, Claims]) -> None:
    seen: dict[bytes, str] = {}
    for name, item in devices.items():
        if item.hardware_id and (first := seen.setdefault(item.hardware_id, name)) != name:
            raise EndorsementError(f"{first} and {name} are reports of one device", step=_STEP)


def _check_links(gpus: Mapping[str, Claims], switches: Mapping[str, Claims]) -> bytes:
    reported = {str(item.attributes["nvidia.pdi"]) for item in switches.values()}
    for name, item in gpus.items():
        if item.attributes["nvidia.protected_pcie"] is not True:
            raise EndorsementError(
                f"{name} is a GPU outside of Protected PCIe mode, beside NVSwitches", step=_STEP
            )
        if (linked := _links(item)) != reported or not linked:
            raise EndorsementError(
                f"{name}, a GPU in Protected PCIe mode, is connected to the NVSwitches "
                f"{_list(linked)}; there are reports of {_list(reported)}",
                step=_STEP,
                hint=_COMPLETE,
            )
    connected: set[str] = set()
    for name, item in switches.items():
        linked = _links(item)
        connected = connected or linked
        if linked != connected:
            raise EndorsementError(
                f"{name}, an NVSwitch, connects the GPUs {_list(linked)}; the first connects "
                f"{_list(connected)}",
                step=_STEP,
                hint=_COMPLETE,
            )
    if len(connected) != len(gpus):
        raise EndorsementError(
            f"the NVSwitches connect {len(connected)} GPUs ({_list(connected)}); there are "
            f"reports of {len(gpus)}",
            step=_STEP,
            hint=_COMPLETE,
        )
    pdis = [*sorted(reported), *sorted(connected)]
    return hashlib.sha256(b"".join(map(bytes.fromhex, pdis))).digest()


def _links(item: Claims) -> set[str]:
    links = item.attributes["nvidia.links"]
    return set(links) if isinstance(links, tuple) else set()


def _pick(devices: Mapping[str, Claims], name: str, value: object) -> dict[str, Claims]:
    return {key: item for key, item in devices.items() if item.attributes.get(name) == value}


def _list(pdis: Iterable[str]) -> str:
    return ", ".join(sorted(pdis)) or "(none)"
