"""A file for people has every key, and means the same as one with the chosen keys only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from attestation.config import commented, describe, dumps, read
from edge.config.site import SiteConfig
from server.config import ServerConfig

KEYS = {"protect": ["insecure-plain-key-file"]}
SERVER: dict[str, Any] = {"state": "state", "trust_domain": "a.example", "keys": KEYS}
IMAGE = f"registry.example/client@sha256:{'ab' * 32}"
CLUSTER = {"image": IMAGE, "runtime_class": "kata-qemu-tdx"}
SITE: dict[str, Any] = {
    "state": "state",
    "data": {"a": {"path": "/srv/a"}, "b-c": {"path": "b", "jobs": ["x-*"]}},
    "accept": {"other_bundles": "ask", "hours": "20:00-06:00", "bundles": ["ab" * 32]},
}
DEFAULT = re.compile(r"^# ([a-z_]+ = (?!\.\.\.).+)$")
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "server": (ServerConfig, SERVER),
    "listening": (ServerConfig, {**SERVER, "listen": {"gate": "127.0.0.1:1"}}),
    "site": (SiteConfig, SITE),
    "bare site": (SiteConfig, {"state": "state"}),
    "cluster": (
        SiteConfig,
        {"state": "s", "launcher": {"kind": "kubernetes"}, "kubernetes": CLUSTER},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_reads_as_the_chosen_values_do(case: str, tmp_path: Path) -> None:
    model, values = CASES[case]
    text = commented(model, values)
    found = read(model, text, where="a.toml", base=tmp_path)
    assert found == read(model, dumps(values), where="b.toml", base=tmp_path)
    assert all(len(row) <= 100 for row in text.splitlines() if row.startswith("# "))


@pytest.mark.parametrize("case", CASES)
def test_every_key_is_in_it_with_its_default(case: str) -> None:
    model, values = CASES[case]
    text = commented(model, values)
    for item in describe(model):
        if not item.contents:
            assert re.search(rf"^(# )?{re.escape(item.key)} = ", text, re.MULTILINE), item
            if item.default and item.key not in str(values):
                assert f"\n# {item.key} = {item.default}\n" in text


@pytest.mark.parametrize("case", ["server", "bare site"])
def test_a_default_can_be_uncommented(case: str, tmp_path: Path) -> None:
    model, values = CASES[case]
    text = commented(model, values)
    changed, live = "", True
    for row in text.splitlines():
        live = row.startswith("[") or (live and not row.startswith("# ["))
        changed += (DEFAULT.sub(r"\1", row) if live else row) + "\n"
    assert changed != text
    found = read(model, changed, where="a.toml", base=tmp_path)
    assert found == read(model, text, where="a.toml", base=tmp_path)


def test_a_table_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="is given as str"):
        commented(ServerConfig, {**SERVER, "listen": "127.0.0.1"})
