"""Write the tables of values in helm/*/README.md from values.yaml; ``--check`` only compares.

The table is between the lines ``<!-- values -->`` and ``<!-- /values -->``. The comment above a key
in values.yaml describes it; a key without one is an error, unless it only contains other keys.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- values -->", "<!-- /values -->"
KEY = re.compile(r"^( *)([A-Za-z0-9_./-]+):(?: +(.*))?$")


class Undescribed(Exception):
    """A key without a description."""


def comments(text: str) -> dict[tuple[str, ...], str]:
    """Return the comment above each key, by its path."""
    found: dict[tuple[str, ...], str] = {}
    stack: list[tuple[int, str]] = []
    pending: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("##"):  # keys of a table, from tools/chart_schema.py
            continue
        if stripped.startswith("#"):
            pending.append(stripped.removeprefix("#").strip())
            continue
        match = KEY.match(line)
        if match:
            indent = len(match[1])
            while stack and stack[-1][0] >= indent:
                stack.pop()
            stack.append((indent, match[2]))
            if pending:
                found[tuple(name for _, name in stack)] = " ".join(pending)
        pending = []
    return found


def rows(
    values: dict[str, Any], notes: dict[tuple[str, ...], str], above: tuple[str, ...] = ()
) -> Iterator[tuple[str, str, str]]:
    """Yield key, default and description of each value."""
    for key, value in values.items():
        path = (*above, key)
        shown = ".".join(f'"{part}"' if "." in part else part for part in path)
        if isinstance(value, dict) and value:
            if path in notes:
                yield shown, "", notes[path]
            yield from rows(value, notes, path)
            continue
        if path not in notes:
            raise Undescribed(f"{shown} has no comment")
        yield shown, json.dumps(value), notes[path]


def table(chart: Path) -> str:
    """Return the table of a chart."""
    text = (chart / "values.yaml").read_text(encoding="utf-8")
    lines = ["| value | default | |", "|---|---|---|"]
    for key, default, note in rows(yaml.safe_load(text), comments(text)):
        cells = (f"`{key}`", f"`{default}`" if default else "", note)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def readme(chart: Path) -> str:
    """Return the README of a chart with its table."""
    text = (chart / "README.md").read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise Undescribed(f"README.md has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{table(chart)}\n{END}{after}"


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--root", type=Path, default=ROOT / "helm", help="folder of the charts")
    arguments = parser.parse_args()
    wrong = 0
    for chart in sorted(path.parent for path in arguments.root.glob("*/Chart.yaml")):
        page = chart / "README.md"
        try:
            text = readme(chart)
        except Undescribed as error:
            print(f"{chart.name}/values.yaml: {error}", file=sys.stderr)
            wrong += 1
            continue
        if text == page.read_text(encoding="utf-8"):
            continue
        if arguments.check:
            print(
                f"{chart.name}/README.md does not fit its values: run tools/chart_readme.py",
                file=sys.stderr,
            )
            wrong += 1
        else:
            page.write_text(text, encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
