"""The TCB status of a platform, by Intel's rule, from collateral that was verified.

Rule: Intel, PCS API v4, "Get TDX TCB Info" and "Get SGX TCB Info", determining the status; Intel's
library implements it in ``EvaluateTcb`` and ``TDRelaunchCheck``:

1. *platform*: the first level, highest first, of which no SVN is above the platform's. For a
   TDX module of version 1 or later its own two SVNs are judged by step 2 instead;
2. *TDX module*: the first level of its identity that is not above its SVN;
3. *Quoting Enclave*: the first level of its identity that is not above its SVN;
4. if the module or the Quoting Enclave is out of date or revoked, so is the whole;
5. a TD 1.5 that was launched while the platform was out of date, and whose platform was updated
   since, is advised to launch again.

``dcap_qvl`` applies the same rule to the quotes that it accepts. It gives no status for an
environment in debug mode, without SEPT_VE_DISABLE, or with a service TD, although a policy may
accept these by name, and TDX guests of Azure and Alibaba have them. It refuses them after all other
checks passed; only then the result of this module is used. Tests compare it with ``dcap_qvl``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from attestation.errors import EndorsementError, EvidenceError
from attestation.evidence import Tee
from attestation.quotes.dcap import DcapQuote
from attestation.quotes.tdx import TdReport

__all__ = ["RELAUNCH", "RELAUNCH_AND_CONFIGURE", "Platform", "tcb_status"]

RELAUNCH: Final = "TDRelaunchAdvised"
RELAUNCH_AND_CONFIGURE: Final = "TDRelaunchAdvisedConfigurationNeeded"

_COMPONENTS: Final = 16
_MODULE_SVNS: Final = 2
_OUT_OF_DATE: Final = "OutOfDate"
_REVOKED: Final = "Revoked"
_CONVERGED: Final = {
    "UpToDate": _OUT_OF_DATE,
    "SWHardeningNeeded": _OUT_OF_DATE,
    "ConfigurationNeeded": "OutOfDateConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded": "OutOfDateConfigurationNeeded",
}
"""The status of a platform with a part that is out of date; other statuses stay."""

_CURRENT: Final = (*_CONVERGED,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """The versions in the PCK certificate: ``cpu_svn``, 16 bytes, and the PCE's SVN."""

    cpu_svn: bytes
    pce_svn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Level:
    status: str
    advisories: tuple[str, ...]


def tcb_status(
    quote: DcapQuote,
    platform: Platform,
    tcb_info: Mapping[str, Any],
    qe_identity: Mapping[str, Any],
) -> tuple[str, tuple[str, ...]]:
    """Return Intel's name of the status, and the advisories that are open, sorted.

    Nothing is verified here: the caller checks signatures and windows, and that the collateral is
    for this platform.

    :raises EndorsementError: when no level matches.
    :raises EvidenceError: when the collateral is malformed.
    """
    try:
        found = _status(quote, platform, tcb_info, qe_identity)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise EvidenceError("is malformed", field="collateral.tcb_info") from error
    return found.status, tuple(sorted(set(found.advisories)))


def _status(
    quote: DcapQuote,
    platform: Platform,
    tcb_info: Mapping[str, Any],
    qe_identity: Mapping[str, Any],
) -> _Level:
    enclave = _first(qe_identity["tcbLevels"], quote.qe_report.isv_svn, "Quoting Enclave")
    body = quote.body
    if quote.tee is not Tee.TDX or not isinstance(body, TdReport):
        return _converge(_platform_level(platform, b"", tcb_info), enclave)
    launch = _domain(platform, body.tee_tcb_svn, tcb_info, enclave)
    if not body.tee_tcb_svn_2:
        return launch
    current = _domain(platform, body.tee_tcb_svn_2, tcb_info, enclave)
    if current.status == _REVOKED:
        return replace(launch, status=_REVOKED)
    if launch.status not in _CONVERGED.values() or current.status not in _CURRENT:
        return launch
    configure = "Configuration" in launch.status + current.status
    return _Level(
        status=RELAUNCH_AND_CONFIGURE if configure else RELAUNCH, advisories=launch.advisories
    )


def _domain(platform: Platform, svn: bytes, tcb_info: Mapping[str, Any], enclave: _Level) -> _Level:
    level = _platform_level(platform, svn, tcb_info)
    minor, version = svn[0], svn[1]
    if not version:
        return _converge(level, enclave)
    wanted = f"TDX_{version:02X}"
    identities = [
        item for item in tcb_info["tdxModuleIdentities"] if str(item["id"]).upper() == wanted
    ]
    if not identities:
        raise EndorsementError(f"no TDX module identity {wanted}", step="TCB")
    return _converge(level, _first(identities[0]["tcbLevels"], minor, "TDX module"), enclave)


def _platform_level(platform: Platform, svn: bytes, tcb_info: Mapping[str, Any]) -> _Level:
    start = _MODULE_SVNS if svn and svn[1] else 0
    levels = sorted(
        tcb_info["tcbLevels"],
        key=lambda level: (
            _svns(level, "sgxtcbcomponents"),
            int(level["tcb"]["pcesvn"]),
            _svns(level, "tdxtcbcomponents") if svn else (),
        ),
        reverse=True,
    )
    for level in levels:
        if (
            _reaches(platform.cpu_svn, _svns(level, "sgxtcbcomponents"))
            and platform.pce_svn >= int(level["tcb"]["pcesvn"])
            and (not svn or _reaches(svn[start:], _svns(level, "tdxtcbcomponents")[start:]))
        ):
            return _level(level)
    raise EndorsementError("No matching TCB level found", step="TCB")


def _svns(level: Mapping[str, Any], name: str) -> tuple[int, ...]:
    found = tuple(int(item["svn"]) for item in level["tcb"][name])
    if len(found) != _COMPONENTS:
        raise ValueError(f"{len(found)} components")
    return found


def _reaches(svn: Sequence[int], least: Sequence[int]) -> bool:
    return all(have >= want for have, want in zip(svn, least, strict=True))


def _first(levels: Sequence[Mapping[str, Any]], svn: int, what: str) -> _Level:
    for level in levels:
        if svn >= int(level["tcb"]["isvsvn"]):
            return _level(level)
    raise EndorsementError(f"the SVN of the {what} is below every level", step="TCB")


def _level(level: Mapping[str, Any]) -> _Level:
    return _Level(
        status=str(level["tcbStatus"]), advisories=tuple(map(str, level.get("advisoryIDs", ())))
    )


def _converge(platform: _Level, *parts: _Level) -> _Level:
    status = platform.status
    statuses = {part.status for part in parts}
    if _OUT_OF_DATE in statuses:
        status = _CONVERGED.get(status, status)
    if _REVOKED in statuses:
        status = _REVOKED
    return _Level(
        status=status,
        advisories=(*platform.advisories, *(item for part in parts for item in part.advisories)),
    )
