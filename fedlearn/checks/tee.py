"""Checks of what can make evidence on this machine."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from fedlearn.checks import Check, fail, ok, warn
from fedlearn.config.attester import sample_key_digest
from fedlearn.config.attesterfile import AttesterSettings

__all__ = ["attester", "devices", "tools"]

_DEVICES: Final = (
    ("Intel TDX", "dev/tdx_guest"),
    ("Intel TDX", "dev/tdx-guest"),
    ("AMD SEV-SNP", "dev/sev-guest"),
    ("TPM", "dev/tpmrm0"),
)
_TSM: Final = "sys/kernel/config/tsm/report"
_CCNP: Final = ("run/ccnp/uds/quote-server.sock", "run/ccnp/uds/ccnp-server.sock")
_INSTALL: Final = {"swtpm": "apt-get install swtpm", "tpm2": "apt-get install tpm2-tools"}
Which = Callable[[str], str | None]


def devices(root: Path = Path("/")) -> Iterator[Check]:
    """Check which TEEs this machine has, and that this user may use them."""
    seen = []
    for name, place in _DEVICES:
        path = root / place
        if not path.exists():
            continue
        if os.access(path, os.R_OK | os.W_OK):
            seen.append(f"{name} ({path})")
        else:
            group = "tss" if "tpm" in place else path.name.replace("-", "_")
            mend = f"give this user access, for example: usermod -aG {group} $USER"
            yield warn("TEE", f"{name}: {path} exists, but this user may not open it", mend)
    if (root / _TSM).is_dir():
        seen.append(f"configfs TSM ({root / _TSM})")
    for place in _CCNP:
        path = root / place
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            seen.append(f"CCNP ({path})")
    if seen:
        yield ok("TEE", ", ".join(seen))
    else:
        mend = "run in a confidential VM for evidence of hardware; the demo needs none"
        yield warn("TEE", "none on this machine", mend)


def tools(which: Which = shutil.which) -> Iterator[Check]:
    """Check that the programs for a TPM, or for a software TPM, are installed."""
    for name, what in (("swtpm", "a software TPM"), ("tpm2", "TPM evidence")):
        path = which(name)
        if path:
            yield ok(name, path)
        else:
            yield warn(name, f"not installed; {what} cannot be used", _INSTALL[name])


def attester(
    settings: AttesterSettings,
    *,
    state: Path,
    root: Path = Path("/"),
    which: Which = shutil.which,
) -> Check:
    """Check that what ``[attester]`` names is available.

    :raises ConfigError: when it is a development key that cannot be used.
    """
    kind = settings.kind
    if kind == "auto":
        here = [place for _, place in _DEVICES if (root / place).exists()]
        if here or (root / _TSM).is_dir() or any((root / item).exists() for item in _CCNP):
            return ok("attester", "auto: hardware is available")
        mend = 'for a trial without hardware, write kind = "insecure-sample" in [attester]'
        return fail("attester", "auto: no TEE on this machine", mend)
    if kind == "tsm" and not (root / _TSM).is_dir():
        mend = "mount configfs, load the guest driver (Linux 6.7 or later), or use another kind"
        return fail("attester", f"tsm: {root / _TSM} does not exist", mend)
    if kind == "ccnp":
        socket = settings.socket or root / _CCNP[0]
        if not socket.exists():
            return fail("attester", f"ccnp: no socket {socket}", "start the CCNP quote server")
    if kind in ("tpm", "azure", "insecure-software-tpm") and not which("tpm2"):
        return fail("attester", f"{kind}: tpm2-tools are not installed", _INSTALL["tpm2"])
    if kind == "insecure-software-tpm" and not which("swtpm"):
        return fail("attester", f"{kind}: swtpm is not installed", _INSTALL["swtpm"])
    if kind in ("tpm", "azure"):
        device = _device(settings.tcti or "device:/dev/tpmrm0", root)
        if device is not None and not device.exists():
            mend = "enable the TPM in the firmware or the hypervisor, or name a tcti"
            return fail("attester", f"{kind}: {device} does not exist", mend)
    digest = sample_key_digest(settings, state=state)
    if settings.insecure:
        shown = f"; its key is {digest.hex()}" if digest is not None else ""
        return warn(
            "attester", f"{kind}: proves nothing about hardware{shown}", "use it for tests only"
        )
    return ok("attester", kind)


def _device(tcti: str, root: Path) -> Path | None:
    """Return the device of a TCTI; None if it does not use a device."""
    kind, _, place = tcti.partition(":")
    return root / place.lstrip("/") if kind == "device" and place else None
