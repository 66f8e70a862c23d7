"""Evidence from an Azure confidential VM with SEV-SNP: its HCL report and its vTPM.

The paravisor keeps its report in the TPM's NV index 0x01400001 and its attestation key at
the persistent handle 0x81000003 (Azure documentation, "Guest attestation for confidential
VMs"). The hardware report in it is made at boot. The TPM's quote is fresh; it is signed by a key
whose digest is in that report. Software measures into PCR 14, as on any TPM.

The platform and AMD publish the VCEK. The relying party takes it from its collateral, so this
attester uses no network. On TDX the quote must be fetched from a service of the platform, which
this attester does not do: opening it raises an error that names the attester to use instead.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from attestation.attesters.kinds import Found, Options
from attestation.attesters.tpm import DEVICES, QUOTED_PCRS, TpmAttester
from attestation.attesters.tpm2_tools import DEFAULT_TCTI, Tpm2Tools
from attestation.attesters.tpm_log import RuntimeLog
from attestation.binding import Bound
from attestation.errors import AttesterError, EvidenceError
from attestation.evidence import Evidence, Tee
from attestation.quotes.azure import HclReport

__all__ = ["AK_HANDLE", "AzureAttester", "HCL_INDEX", "find", "open_attester"]

HCL_INDEX: Final = "0x01400001"
AK_HANDLE: Final = "0x81000003"
_PCR: Final = 14
_BANK: Final = "sha256"
_PCR_BYTES: Final = 32
_SIGNATURE_HEADER: Final = 6
_ASSET_TAG: Final = Path("/sys/class/dmi/id/chassis_asset_tag")
_AZURE: Final = "7783-7084-3265-9085-8269-3286-77"
"""The asset tag of every virtual machine of Azure."""


class AzureAttester:
    """Makes evidence with the vTPM at ``tcti``; an :class:`~attestation.attesters.Attester`.

    Arguments as for :class:`~attestation.attesters.tpm.TpmAttester`.

    :raises AttesterError: when the vTPM has no HCL report, or one of another platform.
    """

    def __init__(self, directory: Path, *, tcti: str = DEFAULT_TCTI, scope: str = "") -> None:
        self._tpm = TpmAttester(directory, tcti=tcti, scope=scope)
        self._tools = Tpm2Tools(tcti)
        self._log = RuntimeLog(directory, _PCR, _BANK, None)
        self._scope = scope
        with self._tools.workspace() as work:
            data = work.run("nvread", "-C", "o", HCL_INDEX)
        try:
            report = HclReport.parse(data)
        except EvidenceError as error:
            raise AttesterError(f"NV index {HCL_INDEX} has no HCL report: {error}") from error
        if report.tee is not Tee.SNP:
            raise AttesterError(
                f"this VM uses {report.tee.value}, whose quote a service of the platform makes",
                hint='use kind = "tsm" where configfs-tsm is there',
            )
        self._report = data

    @property
    def tee(self) -> Tee:
        """:attr:`Tee.AZURE_VTPM`."""
        return Tee.AZURE_VTPM

    def extend(self, claim: str, digest: bytes) -> None:
        """See :meth:`attestation.attesters.tpm.TpmAttester.extend`."""
        self._tpm.extend(claim, digest)

    def collect(self, binding: Bound) -> Evidence:
        """Return the HCL report and a quote over ``binding``, with the log of PCR 14.

        :raises AttesterError: when the vTPM cannot be used now.
        """
        selection = f"{_BANK}:" + ",".join(map(str, QUOTED_PCRS))
        with self._log.held() as lock, self._tools.workspace(locks=(lock,)) as work:
            work.run(
                *("quote", "-Q", "-c", AK_HANDLE, "-l", selection, "--scheme", "rsassa"),
                *("-g", _BANK, "-q", binding.qualifying_data().hex()),
                *("-m", "attest", "-s", "signature", "-o", "pcrs", "-F", "values"),
            )
            attest, signature, values = (
                work.read(name) for name in ("attest", "signature", "pcrs")
            )
            if len(values) != len(QUOTED_PCRS) * _PCR_BYTES:
                raise AttesterError(
                    f"the vTPM quoted {len(values)} bytes of its {_BANK} bank, "
                    f"{len(QUOTED_PCRS)} registers have {len(QUOTED_PCRS) * _PCR_BYTES}"
                )
            pcrs = [values[at : at + _PCR_BYTES] for at in range(0, len(values), _PCR_BYTES)]
            log = self._log.load(pcrs[QUOTED_PCRS.index(_PCR)])
        document = {
            "version": 1,
            "hcl_report": base64.urlsafe_b64encode(self._report).decode().rstrip("="),
            "tpm_quote": {
                "message": attest.hex(),
                "signature": signature[_SIGNATURE_HEADER:].hex(),
                "pcrs": [value.hex() for value in pcrs],
            },
            "scope": self._scope,
        }
        return Evidence(
            tee=Tee.AZURE_VTPM,
            quote=json.dumps(document, sort_keys=True).encode(),
            event_log=self._log.complete(log).to_bytes(),
        )


def find(tag: Path = _ASSET_TAG, devices: Sequence[Path] = DEVICES) -> Found:
    """See :mod:`attestation.attesters.kinds`."""
    try:
        text = tag.read_text(errors="replace")[:64].strip()
    except OSError:
        text = ""
    if text != _AZURE:
        return Found(kind="azure", present=False, why="not a virtual machine of Azure")
    device = next((path for path in devices if path.exists()), None)
    if device is None:
        return Found(kind="azure", present=False, why="an Azure machine without a vTPM")
    return Found(kind="azure", present=True, why=f"an Azure machine with {device}")


def open_attester(options: Options) -> AzureAttester:
    """See :mod:`attestation.attesters.kinds`."""
    tcti = options.tcti or DEFAULT_TCTI
    return AzureAttester(options.state / "tpm", tcti=tcti, scope=options.scope)
