"""``site.toml``: what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.config.site import Hours, SiteConfig
from fedlearn.errors import ConfigError

FULL = """\
state = "state"

[launcher]
kind = "process"

[data.medpar]
path = "data/medpar"
jobs = ["mortality-*"]

[accept]
bundles = ["{digest}"]
other_bundles = "ask"
approval = "manual"
hours = "20:00-06:30"
data_paths = ["/srv"]

[privacy]
required = true
max_epsilon = 8

[caps]
cpu = 2

[attester]
kind = "insecure-sample"
key = "development.key"
hardware_id = "{digest}"
""".replace("{digest}", "ab" * 32)


def _load(tmp_path: Path, source: str) -> SiteConfig:
    path = tmp_path / "site.toml"
    path.write_text(source)
    return SiteConfig.load(path)


def test_distrust_is_the_default(tmp_path: Path) -> None:
    config = _load(tmp_path, 'state = "s"')
    assert config.state == tmp_path / "s"
    assert config.accept.bundles == ()
    assert config.accept.other_bundles == "refuse"
    assert config.accept.data_paths == ()
    assert dict(config.data) == {}


def test_everything(tmp_path: Path) -> None:
    config = _load(tmp_path, FULL)
    assert config.data["medpar"].path == tmp_path / "data/medpar"
    assert config.accept.hours == Hours(start=1200, end=390)
    assert config.attester.key == tmp_path / "development.key"
    assert config.attester.insecure


@pytest.mark.parametrize(
    ("minute", "inside"), [(1199, False), (1200, True), (0, True), (389, True), (390, False)]
)
def test_hours_pass_midnight(minute: int, inside: bool) -> None:
    assert Hours(start=1200, end=390).contain(minute) is inside
    assert Hours(start=390, end=1200).contain(minute) is not inside


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("state =", "stat =", ":1: stat: unknown key; did you mean 'state'?"),
        ('"process"', '"docker"', ':4: launcher.kind: must be one of "process", "kubernetes"'),
        ("[data.medpar]", "[data.Medpar]", ":6: data.Medpar: is not a valid name: it must match"),
        ('path = "data/medpar"', "", ":6: data.medpar: needs exactly one of path and claim"),
        ('path = "data/medpar"', 'claim = "c"', ':7: data.medpar.claim: needs launcher.kind = "ku'),
        ('["mortality-*"]', '["a b"]', ":8: data.medpar.jobs[0]: must be a job's name"),
        ('["abab', '["ab', ":11: accept.bundles[0]: must be 64 hexadecimal digits"),
        ('"ask"', '"accept"', ':12: accept.other_bundles: must be one of "refuse", "ask"'),
        ('"manual"', "true", ":13: accept.approval: must be one of"),
        ('"20:00-06:30"', '"8pm"', ':14: accept.hours: must be hours of the day such as "20:00-'),
        ('"20:00-06:30"', '"24:00-06:30"', ":14: accept.hours: must be hours of the day"),
        ('"20:00-06:30"', '"06:00-06:00"', ":14: accept.hours: begins and ends at the same time"),
        ("max_epsilon = 8", "max_epsilon = 0", ":19: privacy.max_epsilon: must be a number from"),
        ("cpu = 2", "cpu = 0", ":22: caps.cpu: must be a number from 0.1"),
        ('"insecure-sample"', '"tpm"', ':26: attester.key: only for kind = "insecure-sample"'),
        ('"insecure-sample"', '"sample"', 'did you mean "insecure-sample"?'),
    ],
)
def test_a_broken_file_is_named_by_line_and_key(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in FULL
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, FULL.replace(old, new, 1))
    assert message in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        SiteConfig.load(tmp_path / "site.toml")
