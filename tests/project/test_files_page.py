"""The files that pages show are right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import edge.config.site
import server.config
from attestation.policy.model import AppraisalPolicy
from fedlearn import config
from fedlearn.experiment.spec import ExperimentSpec
from fedlearn.job import spec as job

DOCS = Path(__file__).parents[2] / "docs"
MODELS: dict[str, Any] = {
    "experiment": ExperimentSpec,
    "job": job.JobSpec,
    "policy": AppraisalPolicy,
    "server": server.config.ServerConfig,
    "site": edge.config.site.SiteConfig,
}
EXAMPLES = [
    (path.relative_to(DOCS).as_posix(), name, example)
    for path in sorted(DOCS.rglob("*.md"))
    for name, example in re.findall(
        r'```toml title="(\w+)\.toml"\n(.*?)```', path.read_text(encoding="utf-8"), re.DOTALL
    )
]


@pytest.mark.parametrize(("page", "name", "example"), EXAMPLES, ids=lambda value: value[:40])
def test_a_file_that_a_page_shows_is_right(page: str, name: str, example: str) -> None:
    assert config.read(MODELS[name], example, where=f"{page}: {name}.toml")


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_shows_each_file(name: str) -> None:
    assert (f"reference/{name}.md", name) in [(page, file) for page, file, _ in EXAMPLES]


def test_the_examples_in_the_sources_are_right(tmp_path: Path) -> None:
    for module, name in ((server.config, "server"), (edge.config.site, "site")):
        source = (module.__doc__ or "").split("::\n", 1)[1]
        text = "\n".join(line.removeprefix("    ") for line in source.splitlines())
        text = text.replace('"9f86d081..."', f'"{"00" * 32}"')
        kept = "\n".join(line for line in text.splitlines() if not line.startswith("The "))
        assert config.read(MODELS[name], kept, where=name)
