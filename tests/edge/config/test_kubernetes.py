"""The ``[kubernetes]`` table: what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.config.kubernetes import NFD_LABELS
from edge.config.site import SiteConfig
from fedlearn.errors import ConfigError

FULL = """\
state = "state"

[launcher]
kind = "kubernetes"

[data.medpar]
claim = "medpar"

[kubernetes]
namespace = "fedlearn"
workload = "confidential-containers"
image = "registry.example:5000/team/client@sha256:{digest}"
runtime_class = "kata-qemu-snp"
sponsor_address = "fedlearn-edge.fedlearn.svc:8453"

[kubernetes.placement]
node_selector = {"topology.kubernetes.io/zone" = "b"}
queue = "federated"

[[kubernetes.placement.tolerations]]
key = "fedlearn.io/tee"
effect = "NoSchedule"

[kubernetes.devices]
tee = "tdx.intel.com/tdx-guest"

[kubernetes.hints]
rdt = "training"
""".replace("{digest}", "ab" * 32)


def _load(tmp_path: Path, source: str) -> SiteConfig:
    path = tmp_path / "site.toml"
    path.write_text(source)
    return SiteConfig.load(path)


def test_everything(tmp_path: Path) -> None:
    found = _load(tmp_path, FULL).kubernetes
    assert found is not None
    assert found.tee == "snp"
    assert found.tee_label == NFD_LABELS["snp"]
    assert found.placement.tolerations[0].key == "fedlearn.io/tee"
    assert found.devices.tee == "tdx.intel.com/tdx-guest"


def test_the_development_runtime_has_no_tee(tmp_path: Path) -> None:
    found = _load(tmp_path, FULL.replace("kata-qemu-snp", "kata-qemu-coco-dev")).kubernetes
    assert found is not None
    assert found.tee == ""
    assert found.tee_label == ""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("@sha256:" + "ab" * 32, ":latest", "kubernetes.image: must be an image by digest"),
        ("@sha256:" + "ab" * 32, "@sha256:abcd", "kubernetes.image: must be an image by digest"),
        ('"confidential-containers"', '"pods"', "kubernetes.workload: must be one of"),
        ('runtime_class = "kata-qemu-snp"', "", "kubernetes.runtime_class: is needed for"),
        ('runtime_class = "kata-qemu-snp"', 'runtime_class = "Kata"', "a name in the cluster"),
        ('namespace = "fedlearn"', 'tee = "tdx"', 'kubernetes.tee: is "tdx", but runtime_class'),
        ("queue =", "que =", "kubernetes.placement.que: unknown key; did you mean 'queue'?"),
        ('effect = "NoSchedule"', 'effect = "No"', "tolerations[0].effect: must be one of"),
        ('"tdx.intel.com/tdx-guest"', '"gpu"', 'an extended resource such as "nvidia.com/gpu"'),
        ('rdt = "training"', 'rdt = "a b"', "kubernetes.hints.rdt: must be at most 63"),
        (':8453"', '"', "kubernetes.sponsor_address: must be an address"),
        ('claim = "medpar"', 'path = "/srv"', "data.medpar.path: a pod cannot read a path"),
    ],
)
def test_a_broken_table_is_named_by_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in FULL
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, FULL.replace(old, new, 1))
    assert message in str(caught.value)


def test_the_launcher_needs_the_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"launcher.kind: needs a table \[kubernetes\]"):
        _load(tmp_path, 'state = "s"\n[launcher]\nkind = "kubernetes"\n')


def test_a_virtual_machine_needs_to_know_its_tee(tmp_path: Path) -> None:
    source = FULL.replace('"confidential-containers"', '"kubevirt"')
    with pytest.raises(ConfigError, match=r"kubernetes\.tee: is needed"):
        _load(tmp_path, source)
    with pytest.raises(ConfigError, match="a virtual machine has none"):
        _load(tmp_path, source.replace("[kubernetes]", '[kubernetes]\ntee = "snp"', 1))
