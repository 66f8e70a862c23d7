"""The container in which the code of jobs runs, as the chart renders it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from server.config import ServerConfig
from server.main import main
from tests.harness.charts import Render, Rendered

SERVER = "fedlearn-server"
EVERYTHING: dict[str, Any] = {
    "config": {"keys": {"protect": ["tpm-policy", "passphrase"]}, "limits": {"jobs": 3}},
    "resources": {"extended": {"tdx.intel.com/tdx-guest": "1"}},
    "extraVolumes": [{"name": "keys", "secret": {"secretName": "development"}}],
    "extraVolumeMounts": [{"name": "keys", "mountPath": "/keys"}],
    "runtimeClassName": "kata-qemu-tdx",
}


def _pod(rendered: Rendered) -> dict[str, Any]:
    pod: dict[str, Any] = rendered.one("StatefulSet")["spec"]["template"]["spec"]
    return pod


def _named(pod: dict[str, Any], name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = [one for one in pod["containers"] if one["name"] == name]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["least", "everything"])
def test_it_has_two_volumes_that_hold_nothing_and_no_secret(
    render: Render, values: dict[str, Any]
) -> None:
    pod = _pod(render(SERVER, values))
    apps, coordinator = _named(pod, "apps"), _named(pod, "coordinator")
    assert apps["image"] == coordinator["image"]
    assert {mount["name"]: mount["mountPath"] for mount in apps["volumeMounts"]} == {
        "apps": "/run/fedlearn-apps",
        "scratch": "/scratch",
    }
    kinds = {volume["name"]: set(volume) - {"name"} for volume in pod["volumes"]}
    assert kinds["apps"] == kinds["scratch"] == {"emptyDir"}
    for volume in pod["volumes"]:
        if "emptyDir" in volume:
            assert volume["emptyDir"]["medium"] == "Memory"
            assert volume["emptyDir"]["sizeLimit"]
    assert {one["name"] for one in apps["env"]} == {"HOME", "TMPDIR", "FEDLEARN_LOG"}
    assert not {"envFrom", "volumeDevices", "ports"} & set(apps)
    assert set(apps["resources"]["limits"]) == {"cpu", "memory"}
    assert "state" not in json.dumps(apps)
    assert "passphrase" not in json.dumps(apps)
    # What is the pod's is everybody's in it.
    assert pod["automountServiceAccountToken"] is False
    for key in ("shareProcessNamespace", "hostPID", "hostIPC"):
        assert not pod.get(key)


def test_the_coordinator_has_what_the_container_has_not(render: Render) -> None:
    """The twin: a check that found no mount anywhere would prove nothing."""
    pod = _pod(render(SERVER, EVERYTHING))
    mounts = {mount["name"]: mount for mount in _named(pod, "coordinator")["volumeMounts"]}
    assert set(mounts) == {"config", "state", "tmp", "run", "passphrase", "keys", "apps"}
    assert mounts["apps"] == {"name": "apps", "mountPath": "/run/fedlearn-apps", "readOnly": True}
    (init,) = pod["initContainers"]
    assert "apps" not in {mount["name"] for mount in init["volumeMounts"]}


def test_both_name_the_same_socket_and_the_command_is_understood(
    render: Render, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = render(SERVER, EVERYTHING)
    path = tmp_path / "server.toml"
    path.write_text(rendered.one("ConfigMap", "here")["data"]["server.toml"])
    socket = ServerConfig.load(path).jobs.app_host
    assert socket == Path("/run/fedlearn-apps/own/app-host.sock")
    program, *words = _named(_pod(rendered), "apps")["command"]
    assert program == "fedlearn-server"
    made: dict[str, Any] = {}

    def refuse(path: Path, **more: object) -> None:
        made.update(path=path, **more)
        raise SystemExit(7)

    monkeypatch.setattr("server.flower.application.app_host.AppHost", refuse)
    monkeypatch.setattr("fedlearn.sandbox.protect_this_process", lambda: None)
    assert CliRunner().invoke(main, words).exit_code == 7
    assert made == {"path": socket, "scratch": Path("/scratch/apps"), "most": 3}


def test_its_bounds_are_values_and_it_can_be_left_out(render: Render, tmp_path: Path) -> None:
    values = {"apps": {"resources": {"cpu": "4", "memory": "16Gi"}, "scratch": "8Gi"}}
    pod = _pod(render(SERVER, values))
    assert _named(pod, "apps")["resources"]["limits"] == {"cpu": "4", "memory": "16Gi"}
    assert {"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}} in pod[
        "volumes"
    ]
    rendered = render(SERVER, {"apps": {"container": False}, "config": {"jobs": {"resume": False}}})
    assert [one["name"] for one in _pod(rendered)["containers"]] == ["coordinator"]
    assert not {"apps", "scratch"} & {one["name"] for one in _pod(rendered)["volumes"]}
    path = tmp_path / "server.toml"
    path.write_text(rendered.one("ConfigMap", "here")["data"]["server.toml"])
    found = ServerConfig.load(path).jobs
    assert (found.app_host, found.resume) == (None, False)
