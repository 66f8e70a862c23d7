"""The page about the files shows files that are right, and leaves no key out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edge.config
import server.config
from fedlearn import config, events, job
from fedlearn.strategies import STRATEGIES

PAGE = (Path(__file__).parents[2] / "docs/files.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"```toml (\w+)\n(.*?)```", PAGE, re.DOTALL))
MODELS: dict[str, Any] = {
    "job": job.JobSpec,
    "server": server.config.ServerConfig,
    "site": edge.config.SiteConfig,
}


@pytest.mark.parametrize("name", MODELS)
def test_the_example_is_right(name: str) -> None:
    assert config.read(MODELS[name], EXAMPLES[name], where=f"{name}.toml")


def _models(module: Any) -> Iterator[type]:
    for name in module.__all__:
        found = getattr(module, name)
        if dataclasses.is_dataclass(found) and isinstance(found, type):
            yield found


@pytest.mark.parametrize(
    "model",
    [*_models(job), *_models(server.config), *_models(edge.config)],
    ids=lambda model: f"{model.__module__}.{model.__name__}",
)
def test_every_key_is_on_the_page(model: type) -> None:
    for item in dataclasses.fields(model):
        if item.metadata:
            assert re.search(rf"\b{item.name}\b", PAGE), item.name


def test_strategies_and_kinds_are_on_the_page() -> None:
    for name in STRATEGIES:
        assert f"`{name}`" in PAGE
    for name in re.findall(r"`((?:job|client|round|update|privacy)\.[a-z]+)`", PAGE):
        if name != "job.toml":
            assert name in events.KINDS


def test_the_examples_in_the_sources_are_right(tmp_path: Path) -> None:
    for module, name in ((server.config, "server"), (edge.config, "site")):
        source = (module.__doc__ or "").split("::\n", 1)[1]
        text = "\n".join(line.removeprefix("    ") for line in source.splitlines())
        text = text.replace('"9f86d081..."', f'"{"00" * 32}"')
        kept = "\n".join(line for line in text.splitlines() if not line.startswith("The "))
        assert config.read(MODELS[name], kept, where=name)
