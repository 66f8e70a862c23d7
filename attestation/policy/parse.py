"""Reads an appraisal policy from TOML, strictly: every error names key and line.

::

    version = 1                    # the operator's number of this policy
    name = "hospitals"
    accept = ["tdx", "snp"]        # kinds of evidence; empty admits nobody
    insecure_sample = false        # sample evidence proves nothing about hardware
    insecure_debug = false
    [[reference]]                  # several for one claim are alternatives
    claim = "mrtd"
    value = "91eb…"                # hex
    name = "image 2.1"
    not_before = 2026-01-01T00:00:00Z
    not_after = 2026-07-01T00:00:00Z
    tee = "tdx"                    # only for this kind of evidence
    [require]
    claims = ["app", "job"]        # must be present and verified
    [freshness]
    lifetime_s = 1800              # of a result
    max_age_s = 60                 # of evidence that carries a time
    [nodes]                        # when present, every node must be listed
    site-a = ["811dca2a…"]         # chip id, PPID or SHA-256 of the EK
    [tdx] [sgx] [snp] [tpm] [nvidia]   # minimums; see the classes in attestation.policy.model
    [coordinator]                  # the same grammar: what clients demand of the coordinator

The page is docs/reference/policy.md.
"""

from __future__ import annotations

from dataclasses import replace

from attestation.config import SchemaError, read
from attestation.config.toml import TomlError, parse
from attestation.errors import PolicyError
from attestation.policy.model import AppraisalPolicy

__all__ = ["parse_policy"]


def parse_policy(data: bytes, where: str = "policy.toml") -> AppraisalPolicy:
    """Return the policy in ``data``; ``where`` names its source in messages.

    The coordinator's part has the policy's name and version unless it states its own.

    :raises PolicyError: naming file, line and key of everything that is not in the grammar.

    >>> policy = parse_policy(b'version = 1\\naccept = ["tdx"]\\n', "policy.toml")
    >>> policy.accept, policy.tdx.tcb_status
    ((<Tee.TDX: 'tdx'>,), ('UpToDate',))
    >>> parse_policy(b'version = 1\\nacept = ["tdx"]\\n', "policy.toml")
    Traceback (most recent call last):
        ...
    attestation.errors.PolicyError: policy.toml:2: acept: unknown key; did you mean 'accept'?
    """
    try:
        source = parse(data)
    except TomlError as error:
        line = f":{error.line}" if error.line else ""
        raise PolicyError(
            f"{where}{line}: {error}",
            hint="a policy is a TOML file; `fedlearn policy init` writes one",
        ) from None
    try:
        policy = read(AppraisalPolicy, source, where=where)
    except SchemaError as error:
        raise PolicyError(str(error)) from None
    if policy.coordinator is None:
        return policy
    written = source.table["coordinator"]
    inherited = {key: getattr(policy, key) for key in ("name", "version") if key not in written}
    return replace(policy, coordinator=replace(policy.coordinator, **inherited))
