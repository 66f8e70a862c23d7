"""The pages about files show files that are right, and every key is described."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import edge.config.site
import server.config
from fedlearn import config
from fedlearn.job import spec as job

DOCS = Path(__file__).parents[2] / "docs/reference"
MODELS: dict[str, Any] = {
    "job": job.JobSpec,
    "server": server.config.ServerConfig,
    "site": edge.config.site.SiteConfig,
}


@pytest.mark.parametrize("name", MODELS)
def test_the_example_is_right(name: str) -> None:
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    (example,) = re.findall(rf'```toml title="{name}.toml"\n(.*?)```', page, re.DOTALL)
    assert config.read(MODELS[name], example, where=f"{name}.toml")


def test_the_examples_in_the_sources_are_right(tmp_path: Path) -> None:
    for module, name in ((server.config, "server"), (edge.config.site, "site")):
        source = (module.__doc__ or "").split("::\n", 1)[1]
        text = "\n".join(line.removeprefix("    ") for line in source.splitlines())
        text = text.replace('"9f86d081..."', f'"{"00" * 32}"')
        kept = "\n".join(line for line in text.splitlines() if not line.startswith("The "))
        assert config.read(MODELS[name], kept, where=name)
