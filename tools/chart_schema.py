"""Write ``config`` in helm/*/values.schema.json from the models that read server.toml and
site.toml; ``--check`` only compares.

Keys that a chart writes itself are left out, so that a value for them is refused. The rest of the
schemas is written by hand and is not changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edge.config.kubernetes import WORKLOADS
from edge.config.site import Hours, SiteConfig
from fedlearn.config.attesterfile import ATTESTER_KINDS
from server.config import _PROTECTORS, ServerConfig

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = r"^([A-Za-z0-9._-]{1,200}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}$"
DOMAIN = "^[a-z0-9]([a-z0-9._-]{0,126}[a-z0-9])?$"

Schema = dict[str, Any]

MODELS: dict[str, tuple[type, tuple[str, ...], dict[str, Schema]]] = {
    "fedlearn-server": (
        ServerConfig,
        (
            "state",
            "listen",
            "metrics",
            "jobs.app_host",
            "keys.recovery_key",
            "keys.passphrase_file",
        ),
        {
            "": {"required": ["trust_domain", "keys"]},
            "trust_domain": {"pattern": DOMAIN},
            "advertise.gate": {"pattern": ADDRESS},
            "advertise.control": {"pattern": ADDRESS},
            "advertise.fleet": {"pattern": ADDRESS},
            "attester.kind": {"enum": list(ATTESTER_KINDS)},
            "keys": {"required": ["protect"]},
            "keys.protect": {
                "items": {"type": "string", "enum": list(_PROTECTORS)},
                "minItems": 1,
                "uniqueItems": True,
            },
        },
    ),
    "fedlearn-edge": (
        SiteConfig,
        (
            "state",
            "launcher.kind",
            "kubernetes.kubeconfig",
            "kubernetes.namespace",
            "kubernetes.image",
            "kubernetes.sponsor_listen",
            "kubernetes.sponsor_address",
            "kubernetes.service_account",
            "kubernetes.pull_secrets",
        ),
        {
            "attester.kind": {"enum": list(ATTESTER_KINDS)},
            "kubernetes.workload": {"enum": list(WORKLOADS)},
            "kubernetes.tee": {"enum": ["", "tdx", "snp"]},
        },
    ),
}
"""For each chart its model, the keys that the chart writes, and constraints beside the types."""


def schema(cls: type, without: Iterable[str], beyond: Mapping[str, Schema]) -> Schema:
    """Return the schema of a model."""
    return _model(cls, frozenset(without), beyond, "")


def _model(cls: type, without: frozenset[str], beyond: Mapping[str, Schema], at: str) -> Schema:
    hints = typing.get_type_hints(cls)
    properties = {}
    for field in dataclasses.fields(cls):
        path = f"{at}.{field.name}" if at else field.name
        if path not in without:
            properties[field.name] = _kind(hints[field.name], without, beyond, path)
    found: Schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return {**found, **beyond.get(at, {})}


def _kind(hint: Any, without: frozenset[str], beyond: Mapping[str, Schema], at: str) -> Schema:
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        inner = next(item for item in arguments if item is not type(None))
        return _kind(inner, without, beyond, at)
    origin = typing.get_origin(hint)
    found: Schema
    if origin is tuple:
        found = {"type": "array", "items": _kind(arguments[0], without, beyond, f"{at}[]")}
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        below = _kind(arguments[1], without, beyond, f"{at}.*")
        found = {"type": "object", "additionalProperties": below}
    elif dataclasses.is_dataclass(hint) and hint is not Hours:
        return _model(typing.cast("type", hint), without, beyond, at)
    else:
        names = {bool: "boolean", int: "integer", float: "number"}
        found = {"type": names.get(hint, "string")}
    return {**found, **beyond.get(at, {})}


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition(";")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    wrong = 0
    for chart, (cls, without, beyond) in MODELS.items():
        path = ROOT / "helm" / chart / "values.schema.json"
        text = path.read_text(encoding="utf-8")
        document = json.loads(text)
        document["properties"]["config"] = schema(cls, without, beyond)
        new = json.dumps(document, indent=2) + "\n"
        if new == text:
            continue
        if check:
            print(f"{path.relative_to(ROOT)}: run tools/chart_schema.py", file=sys.stderr)
            wrong += 1
        else:
            path.write_text(new, encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
