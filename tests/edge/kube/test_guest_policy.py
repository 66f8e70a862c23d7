"""The guest's policy, evaluated by the engine that the kata agent has inside (regorus)."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import opa_eval
import pytest

from edge.kube.guest_policy import COMMAND, guest_policy
from fedlearn.errors import ConfigError

IMAGE = "registry.example/fedlearn-client@sha256:" + "ab" * 32
ANNOTATIONS = "io.kubernetes.cri.container-type"

Ask = Callable[[str, Any], bool]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    path = tmp_path_factory.mktemp("policy") / "policy.rego"
    path.write_text(guest_policy(IMAGE))

    def evaluate(request: str, given: object) -> bool:
        engine = opa_eval.OpaEval(str(path), query=f"data.agent_policy.{request}Request")
        answer = engine.evaluate_parsed(json.dumps(given))
        assert isinstance(answer, bool), request
        return answer

    return evaluate


def client() -> dict[str, Any]:
    """A request for the client's container, as the kata runtime makes it."""
    return {
        "container_id": "c1",
        "OCI": {
            "Annotations": {ANNOTATIONS: "container"},
            "Hooks": None,
            "Process": {
                "Args": list(COMMAND),
                "Cwd": "/scratch",
                "Env": [
                    "PATH=/opt/fedlearn/bin:/usr/bin:/bin",
                    "PYTHONDONTWRITEBYTECODE=1",
                    "PYTHONUNBUFFERED=1",
                    "FLWR_TELEMETRY_ENABLED=0",
                    "HOSTNAME=a1b2-x8d7z",
                    "HOME=/scratch",
                    "FEDLEARN_SPONSOR=fedlearn-edge.fedlearn.svc:8453",
                    "KUBERNETES_SERVICE_HOST=10.96.0.1",
                    "KUBERNETES_PORT=tcp://10.96.0.1:443",
                ],
            },
            "Mounts": [
                {"destination": path}
                for path in ("/proc", "/dev", "/etc/hosts", "/data", "/state", "/scratch")
            ],
        },
        "storages": [
            {
                "driver": "image_guest_pull",
                "source": IMAGE,
                "mount_point": "/run/kata-containers/c1/rootfs",
            },
            {
                "driver": "ephemeral",
                "source": "tmpfs",
                "mount_point": "/run/kata-containers/sandbox/ephemeral/state",
            },
        ],
    }


def sandbox() -> dict[str, Any]:
    """A request for the sandbox's container."""
    return {
        "OCI": {
            "Annotations": {ANNOTATIONS: "sandbox"},
            "Process": {"Args": ["/pause"], "Env": ["PATH=/usr/bin:/bin"]},
            "Mounts": [{"destination": "/proc"}],
        },
        "storages": [{"driver": "image_guest_pull", "source": "pause", "mount_point": "/run/x"}],
    }


def test_a_client_may_start(ask: Ask) -> None:
    assert ask("CreateContainer", sandbox())
    assert ask("CreateContainer", client())
    for request in ("CreateSandbox", "StartContainer", "SignalProcess", "WaitProcess"):
        assert ask(request, {})


@pytest.mark.parametrize(
    "request_name",
    ["ExecProcess", "ReadStream", "WriteStream", "SetPolicy", "AddSwap", "StartTracing"],
)
def test_nobody_gets_in_or_listens(ask: Ask, request_name: str) -> None:
    assert not ask(request_name, {})
    assert not ask(request_name, {"process": {"Args": ["/bin/sh"]}})


def _env(variable: str) -> Callable[[dict[str, Any]], None]:
    return lambda given: given["OCI"]["Process"]["Env"].append(variable)


def _mount(path: str) -> Callable[[dict[str, Any]], None]:
    return lambda given: given["OCI"]["Mounts"].append({"destination": path})


def _storage(driver: str, source: str, place: str) -> Callable[[dict[str, Any]], None]:
    return lambda given: given["storages"].append(
        {"driver": driver, "source": source, "mount_point": place}
    )


ATTACKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another image": lambda given: given["storages"][0].update(source=IMAGE.replace("ab", "cd")),
    "an image of the host": lambda given: given["storages"].pop(0),
    "another image beside": _storage("image_guest_pull", "evil@sha256:00", "/run/x"),
    "another command": lambda given: given["OCI"]["Process"].update(Args=["/bin/sh"]),
    "more arguments": lambda given: given["OCI"]["Process"]["Args"].append("--debug"),
    "no isolation": lambda given: given["OCI"]["Process"]["Args"].remove("-I"),
    "a hook": lambda given: given["OCI"].update(Hooks={"Prestart": [{"Path": "/data/x"}]}),
    "a library": _env("LD_PRELOAD=/data/x.so"),
    "a search path of Python": _env("PYTHONPATH=/data"),
    "a start-up file of Python": _env("PYTHONSTARTUP=/data/x.py"),
    "a search path": _env("PATH=/data:/usr/bin"),
    "a search path that climbs": _env("PATH=/usr/../data"),
    "a proxy": _env("HTTPS_PROXY=http://10.0.0.1"),
    "authorities of others": _env("SSL_CERT_FILE=/data/ca.pem"),
    "a line in a variable": _env("FEDLEARN_LOG=x\nLD_PRELOAD=/data/x.so"),
    "a mount over the packages": _mount("/opt/fedlearn/lib/python3.11/site-packages"),
    "a mount over the libraries": _mount("/usr/lib"),
    "a mount over the root": _mount("/"),
    "a storage over the root": _storage("virtio-fs", "x", "/run/kata-containers/c1/rootfs/usr"),
    "a storage that climbs": _storage("blk", "x", "/run/kata-containers/shared/../c1/rootfs"),
    "a claim to be the sandbox": lambda given: given["OCI"]["Annotations"].update(
        {ANNOTATIONS: "sandbox"}
    ),
    "no kind at all": lambda given: given["OCI"].update(Annotations={}),
}


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_a_changed_container_does_not_start(ask: Ask, attack: str) -> None:
    given = client()
    ATTACKS[attack](given)
    assert given != client()
    assert not ask("CreateContainer", given)


@pytest.mark.parametrize("attack", ["a hook", "a library", "a mount over the libraries"])
def test_a_changed_sandbox_does_not_start(ask: Ask, attack: str) -> None:
    given = copy.deepcopy(sandbox())
    ATTACKS[attack](given)
    assert not ask("CreateContainer", given)
    other = sandbox()
    other["OCI"]["Process"]["Args"] = ["/bin/sh"]
    assert not ask("CreateContainer", other)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/run/kata-containers/shared/containers/c1-hosts", True),
        ("/run/kata-containers/shared/containers/../../c1/rootfs/x", False),
        ("/usr/bin/python", False),
        ("", False),
    ],
)
def test_files_are_copied_to_the_mounts_only(ask: Ask, path: str, allowed: bool) -> None:
    assert ask("CopyFile", {"path": path}) is allowed


@pytest.mark.parametrize("image", ['a"@sha256:', "a\n", "a\\b", "a\0", "", "a b", "a`"])
def test_nothing_can_be_written_into_the_policy(image: str) -> None:
    with pytest.raises(ConfigError, match="cannot be part of the guest's policy"):
        guest_policy(image)


def test_the_engine_refuses_what_is_no_policy(tmp_path: Path) -> None:
    path = tmp_path / "broken.rego"
    path.write_text(guest_policy(IMAGE) + "\nnot a rule {")
    with pytest.raises(RuntimeError):
        opa_eval.OpaEval(str(path)).evaluate("{}")
