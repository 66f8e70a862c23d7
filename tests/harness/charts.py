"""Real helm on the charts, with what it rendered as data."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import yaml

ROOT: Final = Path(__file__).resolve().parents[2]
CHARTS: Final = ROOT / "helm"
DIGEST: Final = "sha256:" + "ab" * 32

Object = dict[str, Any]

REQUEST: Final = """\
-----BEGIN CERTIFICATE REQUEST-----
MIHKMHICAQAwEDEOMAwGA1UEAwwFYWxpY2UwWTATBgcqhkjOPQIBBggqhkjOPQMB
BwNCAAQkBypW5y5qdh6tOl+/63iJlKFVioa71yLflCHPdPUvUoyKckmkcG36fV1H
mZOVbdmbjvz3+A11l7LYKpozMrvAoAAwCgYIKoZIzj0EAwIDSAAwRQIhAIXJcgO8
mcGlEOOWT58Tc+je+NhGxcgExRuHTNdbPthNAiBQ1J6T/2UAgFU5jtXxsvNvrkXO
ZcLxQ4c/8oz+wPdmfA==
-----END CERTIFICATE REQUEST-----
"""

LEAST: Final[dict[str, Object]] = {
    "fedlearn-server": {
        "image": {"digest": DIGEST},
        "config": {
            "trust_domain": "hospitals.example",
            "keys": {"protect": ["passphrase"]},
        },
        "keys": {"passphrase": {"existingSecret": "root"}},
        "operator": {"csr": REQUEST},
    },
    "fedlearn-edge": {
        "site": {"name": "hospital-a"},
        "enrollment": {"existingSecret": "join"},
        "image": {"digest": DIGEST},
        "client": {"image": {"digest": DIGEST}},
        "networkPolicy": {
            "coordinator": {"to": [{"ipBlock": {"cidr": "192.0.2.7/32"}}]},
            "registry": {"to": [{"ipBlock": {"cidr": "192.0.2.9/32"}}]},
        },
    },
}
"""The least that each chart has to be given."""


def merged(*layers: Mapping[str, Any]) -> Object:
    """Lay mappings over each other, the last on top."""
    found: Object = {}
    for layer in layers:
        for key, value in layer.items():
            below = found.get(key)
            if isinstance(value, Mapping) and isinstance(below, dict):
                found[key] = merged(below, value)
            else:
                found[key] = value
    return found


@dataclass(frozen=True, slots=True)
class Rendered:
    """What one ``helm template`` gave."""

    objects: Sequence[Object] = field(repr=False)

    def all(self, kind: str) -> list[Object]:
        """Return all objects of a kind."""
        return [one for one in self.objects if one["kind"] == kind]

    def one(self, kind: str, name: str | None = None) -> Object:
        """Return the only object of a kind (and name)."""
        found = [one for one in self.all(kind) if name in (None, one["metadata"]["name"])]
        assert len(found) == 1, [one["metadata"]["name"] for one in found]
        return found[0]

    def pods(self) -> Iterator[tuple[str, Object]]:
        """Yield a name and the template of everything that becomes a pod."""
        for one in self.objects:
            name, spec = f"{one['kind']}/{one['metadata']['name']}", one.get("spec", {})
            match one["kind"]:
                case "Pod":
                    yield name, one
                case "CronJob":
                    yield name, spec["jobTemplate"]["spec"]["template"]
                case "Deployment" | "StatefulSet" | "DaemonSet" | "Job":
                    yield name, spec["template"]


@dataclass(frozen=True, slots=True)
class Helm:
    """Real helm."""

    program: Path

    def run(
        self, *words: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one command."""
        return subprocess.run(
            [str(self.program), *words],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
            env=None if env is None else dict(env),
        )

    def values(self, chart: str, values: Mapping[str, Any], folder: Path) -> Path:
        """Write a file with the least values and these on top."""
        path = folder / f"{chart}.values.json"
        path.write_text(json.dumps(merged(LEAST[chart], values)))
        return path

    def template(
        self, chart: str, *files: Path, version: str = "1.34.0", more: Sequence[str] = ()
    ) -> Rendered:
        """Render a chart with files of values.

        :raises AssertionError: with helm's own words when it refuses.
        """
        flags = [word for path in files for word in ("--values", str(path))]
        done = self.run(
            "template", "here", str(CHARTS / chart), "--namespace", "fedlearn",
            "--kube-version", version, *flags, *more,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = [one for one in yaml.safe_load_all(done.stdout) if one]
        return Rendered(objects=found)


class Render(Protocol):
    """Renders a chart with values laid over the least ones."""

    def __call__(
        self,
        chart: str,
        values: Mapping[str, Any] | None = None,
        *,
        version: str = "1.34.0",
        more: Sequence[str] = (),
    ) -> Rendered: ...
