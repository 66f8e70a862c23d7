"""What of ``site.toml`` reaches a client with its bootstrap document."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

import edge.agent.process_launcher
from edge.config.site import SiteConfig
from edge.main import _launcher
from fedlearn.config.filters import FilterSpec
from fedlearn.errors import ConfigError

SITE = """\
state = "state"
[accept]
sandbox = "full"
app_logs = "sealed"
[privacy]
filters = [{ kind = "clip", norm = 1.0 }, { kind = "gaussian", sigma = 0.5 }]
"""


def test_the_filters_and_the_sandbox_of_a_site_reach_its_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site.toml").write_text(SITE)
    config = SiteConfig.load(tmp_path / "site.toml")
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        edge.agent.process_launcher, "LocalLauncher", lambda folder, **more: given.update(more)
    )
    identity = SimpleNamespace(site="a", gate_address="h:1", ca_pin=bytes(32))
    callbacks: Any = mock.Mock(identity=identity)
    _launcher(callbacks, config, config.attester)
    assignment = SimpleNamespace(spec="{}", policy="")
    workload = SimpleNamespace(assignment=assignment, client="c", bundle=b"", data="")
    bootstrap = given["prepare"](workload)
    assert bootstrap.filters == (
        FilterSpec(kind="clip", norm=1.0),
        FilterSpec(kind="gaussian", sigma=0.5),
    )
    assert (bootstrap.sandbox, bootstrap.app_logs) == ("full", "sealed")


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ('[{ kind = "gaussian", sigma = 0.5 }]', r'filters\[0\].*needs a filter "clip"'),
        ('[{ kind = "mask" }]', 'must be one of "clip", "gaussian"'),
        ('["clip"]', "must be tables"),
    ],
)
def test_filters_that_cannot_be_are_refused_where_they_stand(
    tmp_path: Path, filters: str, words: str
) -> None:
    (tmp_path / "site.toml").write_text(f'state = "state"\n[privacy]\nfilters = {filters}\n')
    with pytest.raises(ConfigError, match=words):
        SiteConfig.load(tmp_path / "site.toml")
