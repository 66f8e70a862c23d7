"""Write what the charts state of server.toml and site.toml; ``--check`` only compares.

In helm/*/values.schema.json this is ``config``, with the types, bounds and patterns by which the
file is read. In values.yaml it is the keys of each table that the file leaves out, in the lines
that begin with ``##``. Keys that a chart writes itself are left out, so that a value for them is
refused. The rest of both files is written by hand and is not changed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from attestation.config import KeyDescription, describe
from edge.config.site import SiteConfig
from server.config import ServerConfig

ROOT = Path(__file__).resolve().parent.parent
KEY = re.compile(r"^( *)([A-Za-z0-9_./-]+):(?: +(.*))?$")
ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")
WIDTH = 100

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """How a chart uses a model.

    ``without``  the keys that the chart writes, or that a cluster cannot have
    ``empty``    keys that the chart leaves out of the file where they are empty
    ``beyond``   constraints beside those of the model, by the table that they are for
    """

    model: type
    without: frozenset[str]
    empty: frozenset[str]
    beyond: Mapping[str, Schema] = field(default_factory=dict)


CHARTS = {
    "fedlearn-server": Chart(
        model=ServerConfig,
        without=frozenset(
            (
                *("state", "listen", "metrics", "jobs.app_host"),
                *("keys.recovery_key", "keys.passphrase_file"),
            )
        ),
        empty=frozenset(("trust_domain", "keys.protect")),
    ),
    "fedlearn-edge": Chart(
        model=SiteConfig,
        without=frozenset(
            (
                *("state", "launcher.kind", "data.NAME.path"),
                *("kubernetes.kubeconfig", "kubernetes.namespace", "kubernetes.image"),
                *("kubernetes.sponsor_listen", "kubernetes.sponsor_address"),
                *("kubernetes.service_account", "kubernetes.pull_secrets"),
            )
        ),
        empty=frozenset(("kubernetes.runtime_class",)),
        beyond={
            "data.NAME": {
                "required": ["claim"],
                "dependentRequired": {"epsilon": ["delta"], "delta": ["epsilon"]},
            }
        },
    ),
}


class Tables:
    """The keys of a chart's model, by table."""

    def __init__(self, chart: Chart) -> None:
        self._chart = chart
        self._keys: dict[str, list[KeyDescription]] = {}
        for item in describe(chart.model):
            if _path(item) not in chart.without:
                self._keys.setdefault(item.table, []).append(item)

    def schema(self, table: str = "") -> Schema:
        """Return the schema of a table."""
        items = self._keys.get(table, ())
        found: Schema = {
            "type": "object",
            "additionalProperties": False,
            "properties": {item.key: self._value(item) for item in items},
        }
        if required := [item.key for item in items if item.default is None]:
            found["required"] = required
        return {**found, **self._chart.beyond.get(table, {})}

    def _value(self, item: KeyDescription) -> Schema:
        found = dict(item.json)
        if _path(item) in self._chart.empty:
            found.pop("minItems", None)
            if "pattern" in found:
                found["pattern"] = f"^$|{found['pattern']}"
        if not item.contents:
            return found
        below = self.schema(item.contents)
        match item.contents.removeprefix(_path(item)):
            case ".NAME":
                return {**found, "additionalProperties": below}
            case "[]":
                return {**found, "items": below}
        return below

    def comments(self, table: str, given: Mapping[str, Any], indent: str) -> Iterator[str]:
        """Yield the keys of a table that are not ``given``, as lines of a comment."""
        named = f"{table}.NAME"
        yield from self._comments(named if named in self._keys else table, table, given, indent)

    def _comments(
        self, table: str, above: str, given: Mapping[str, Any], indent: str
    ) -> Iterator[str]:
        for item in self._keys.get(table, ()):
            if item.key in given:
                continue
            if item.contents != _path(item):
                name = _path(item).removeprefix(f"{above}.")
                yield from _comment(f"{name}: {_meaning(item)}", indent)
            if item.contents:
                yield from self._comments(item.contents, above, {}, indent)


def _path(item: KeyDescription) -> str:
    return ".".join(filter(None, (item.table, item.key)))


def _meaning(item: KeyDescription) -> str:
    text = ROLE.sub(r"\1", item.meaning).replace("``", "`").rstrip(".")
    default = "required" if item.default is None else f"default {item.default or 'none'}"
    return f"{text} ({item.type}; {default})"


def _comment(text: str, indent: str) -> Iterator[str]:
    first, more = f"{indent}##   ", f"{indent}##       "
    yield from textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=more,
        break_long_words=False,
        break_on_hyphens=False,
    )


def values(text: str, tables: Tables) -> str:
    """Return values.yaml with the keys of each table of ``config`` that it leaves out."""
    document = yaml.safe_load(text)
    lines: list[str] = []
    stack: list[tuple[int, str]] = []
    for line in text.splitlines():
        if line.lstrip().startswith("##"):
            continue
        match = KEY.match(line)
        if match:
            indent = len(match[1])
            while stack and stack[-1][0] >= indent:
                stack.pop()
            stack.append((indent, match[2]))
            path = [name for _, name in stack]
            found: Any = document
            for name in path:
                found = found[name]
            if path[0] == "config" and isinstance(found, dict):
                lines += tables.comments(".".join(path[1:]), found, match[1])
        lines.append(line)
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition(";")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    wrong = 0
    for name, chart in CHARTS.items():
        folder, tables = ROOT / "helm" / name, Tables(chart)
        path = folder / "values.schema.json"
        document = json.loads(path.read_text(encoding="utf-8"))
        document["properties"]["config"] = tables.schema()
        comments = folder / "values.yaml"
        written = {
            path: json.dumps(document, indent=2) + "\n",
            comments: values(comments.read_text(encoding="utf-8"), tables),
        }
        for file, new in written.items():
            if new == file.read_text(encoding="utf-8"):
                continue
            if check:
                print(f"{file.relative_to(ROOT)}: run tools/chart_schema.py", file=sys.stderr)
                wrong += 1
            else:
                file.write_text(new, encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
