"""The newest version of each signed policy that a site has seen: an older one is refused.

Only policies that one of the site's ``accept.policy_keys`` signed are recorded: where the
coordinator may write a policy itself, refusing an old one would protect nothing. The record is a
file in the site's state::

    policies.json   {"NAME": {"version": 3, "digest": "SHA-256 of its meaning"}, ...}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from attestation.durable import write_durably
from attestation.policy.model import AppraisalPolicy
from fedlearn.config import file_bytes
from fedlearn.errors import ConfigError

__all__ = ["PolicyMemory", "SeenPolicy", "rollback"]

MAX_POLICIES: Final = 1000
_FILE: Final = "policies.json"
_MAX_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenPolicy:
    """The newest version of a policy under which this site has run a job."""

    version: int
    digest: bytes


class PolicyMemory:
    """The record of one site. Each call reads the file, which a command may change meanwhile."""

    def __init__(self, state: Path) -> None:
        self._path = state / _FILE

    def seen(self) -> Mapping[str, SeenPolicy]:
        """Return the newest version of each policy, by name.

        :raises ConfigError: when the file is damaged: the versions that were seen are then unknown.
        """
        if not self._path.exists():
            return {}
        try:
            document = json.loads(file_bytes(self._path, limit=_MAX_BYTES))
            found = {
                str(name): SeenPolicy(
                    version=int(entry["version"]), digest=bytes.fromhex(entry["digest"])
                )
                for name, entry in document.items()
            }
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise ConfigError(
                "is damaged",
                where=str(self._path),
                hint="restore it; without it, this site accepts older versions of policies again",
            ) from None
        return found

    def remember(self, policy: AppraisalPolicy) -> None:
        """Record the version of a policy under which a job is started, if it is the newest.

        :raises ConfigError: when there are too many, or the file cannot be read.
        """
        known = dict(self.seen())
        former = known.get(policy.name)
        if former is not None and former.version >= policy.version:
            return
        if former is None and len(known) >= MAX_POLICIES:
            raise ConfigError(
                f"holds {MAX_POLICIES} policies already",
                where=str(self._path),
                hint="remove one with `fedlearn-edge policies --forget NAME`",
            )
        known[policy.name] = SeenPolicy(version=policy.version, digest=policy.digest)
        self._write(known)

    def forget(self, name: str) -> SeenPolicy:
        """Remove a policy from the record, so that any version of it is accepted; return the entry.

        :raises ConfigError: when this site has seen none of this name.
        """
        known = dict(self.seen())
        if name not in known:
            raise ConfigError(
                f"this site has seen no signed policy {name[:80]!a}",
                hint="`fedlearn-edge policies` lists them",
            )
        former = known.pop(name)
        self._write(known)
        return former

    def _write(self, known: Mapping[str, SeenPolicy]) -> None:
        document = {
            name: {"version": seen.version, "digest": seen.digest.hex()}
            for name, seen in sorted(known.items())
        }
        write_durably(self._path, json.dumps(document, indent=1).encode())


def rollback(policy: AppraisalPolicy, seen: Mapping[str, SeenPolicy]) -> str:
    """Return why a signed policy is refused as a rollback; empty when it is as new as any seen."""
    newest = seen.get(policy.name)
    if newest is None or policy.version > newest.version:
        return ""
    if policy.version < newest.version:
        return (
            f"version {policy.version} of the policy {policy.name!r} is older than "
            f"{newest.version}, which this site has seen; "
            f"`fedlearn-edge policies --forget {policy.name}` here accepts it again"
        )
    if policy.digest != newest.digest:
        return (
            f"version {policy.version} of the policy {policy.name!r} was seen here with other "
            "content; increase the version with every change"
        )
    return ""
