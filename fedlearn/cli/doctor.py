"""``fedlearn doctor``: checks a machine and its configuration before they are used."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import click

from fedlearn import checks, extras
from fedlearn.checks import Check, Level, Probe, files, machine, tee
from fedlearn.config.attesterfile import AttesterSettings
from fedlearn.config.trustfile import Trust
from fedlearn.terminal.console import ERROR, json_option, line, print_json, printable

__all__ = ["cluster_probe", "command", "edge_probes", "machine_probes", "server_probes"]

_STYLES: Final = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}
_CONFIG = click.Path(path_type=Path)


@click.command("doctor")
@click.option("--server", type=_CONFIG, metavar="FILE", help="Check this server.toml as well.")
@click.option("--edge", type=_CONFIG, metavar="FILE", help="Check this site.toml as well.")
@click.option("--cluster", is_flag=True, help="Check the cluster of --edge as well.")
@json_option
def command(server: Path | None, edge: Path | None, cluster: bool, as_json: bool) -> None:
    """Check this machine and its configuration, and report how to correct each fault.

    Ends with status 1 when something will not work; warnings alone are not a failure.
    """
    probes = list(machine_probes())
    if server is not None:
        probes += server_probes(server)
    if edge is not None:
        probes += edge_probes(edge)
    if cluster:
        probes.append(("cluster", cluster_probe(edge)))
    found = checks.run(probes)
    failed = [check for check in found if check.level is Level.FAIL]
    if as_json:
        print_json({"ok": not failed, "checks": [check.to_json() for check in found]})
    else:
        _show(found)
    if failed:
        sys.exit(ERROR)


def machine_probes() -> Iterator[tuple[str, Probe]]:
    """Run the checks of any machine."""
    yield "python", machine.python
    yield "libraries", machine.packages
    yield "packages", machine.shadowing
    yield "installation", machine.installation
    yield "clock", machine.clock
    yield "TEE", tee.devices
    yield "tools", tee.tools
    yield "disk", lambda: machine.disk(Path.cwd())
    yield "memory", machine.memory
    yield "swap", machine.swap
    yield "core dumps", machine.core_dumps
    yield "umask", machine.file_mask
    yield "open files", machine.open_files
    yield "temporary files", machine.temporary
    yield "sandbox", machine.sandbox


def server_probes(path: Path) -> Iterator[tuple[str, Probe]]:
    """Run the checks of a coordinator. A file that does not load is one failed check."""
    from fedlearn.errors import ConfigError
    from server.config import ServerConfig

    try:
        config = ServerConfig.load(path)
    except ConfigError as error:
        yield "server.toml", _raiser(error)
        return
    yield "server.toml", lambda: checks.ok("server.toml", f"{path} is valid")
    yield "state", lambda: files.folder(config.state, name="state", private=True)
    yield "disk", lambda: machine.disk(config.state, what="state disk")
    yield "runtime folder", lambda: _runtime_folder(config.state)
    yield "certificates", lambda: files.certificates(config.state)
    for name in ("gate", "control", "fleet"):
        yield "port", _port(getattr(config.listen, name), name)
    yield "attester", lambda: tee.attester(config.attester, state=config.state)
    yield "server extra", lambda: _extra("server", needed_for="a coordinator")
    yield "flower", _flower
    keys = config.keys
    if "tpm-policy" in keys.protect:
        yield (
            "keys",
            lambda: dataclasses.replace(
                tee.attester(AttesterSettings(kind="tpm", tcti=keys.tcti), state=config.state),
                name="keys",
            ),
        )
    if keys.recovery_key is not None:
        recovery = keys.recovery_key
        make = "correct the path, or make a pair: fedlearn model keygen --out recovery.pem"
        yield (
            "recovery key",
            lambda: files.folder(recovery, name="recovery key", write=False, mend=make),
        )
    if keys.passphrase_file is not None:
        passphrase = keys.passphrase_file
        yield "passphrase", lambda: files.secret(passphrase, name="passphrase")
    if keys.insecure:
        yield (
            "keys",
            lambda: checks.warn("keys", "the root key is in a plain file", "for development only"),
        )
    for item in (*config.trust.collateral, *config.trust.endorsements, *config.trust.tpm_ek_roots):
        yield "trust", _readable(item, "trust")
    yield "trust", lambda: _trust(config.trust)
    yield "initialized", lambda: _initialized(config.state, path)


def _runtime_folder(state: Path) -> Check:
    from server.jobs.runtime_folder import in_memory, runtime_folder

    folder = runtime_folder(state)
    there = next(each for each in folder.parents if each.is_dir())
    if in_memory(there):
        return checks.ok("runtime folder", f"{folder} is in memory")
    return checks.warn(
        "runtime folder",
        f"{folder} is on a disk: files that apps write are there in the clear while they run",
        "set RUNTIME_DIRECTORY to a folder in memory, as systemd's RuntimeDirectory= does",
    )


def edge_probes(path: Path) -> Iterator[tuple[str, Probe]]:
    """Run the checks of a site. A file that does not load is one failed check."""
    from edge.config.site import SiteConfig
    from fedlearn.errors import ConfigError

    try:
        config = SiteConfig.load(path)
    except ConfigError as error:
        yield "site.toml", _raiser(error)
        return
    yield "site.toml", lambda: checks.ok("site.toml", f"{path} is valid")
    yield "state", lambda: files.folder(config.state, name="state", private=True)
    yield "disk", lambda: machine.disk(config.state, what="state disk")
    yield "certificates", lambda: files.certificates(config.state)
    yield "enrollment", lambda: _enrollment(config.state)
    if config.launcher.kind == "process":
        yield "attester", lambda: tee.attester(config.attester, state=config.state)
    yield "trust", lambda: _trust(config.trust)
    for name, data in config.data.items():
        if data.path is not None:
            yield "data", _readable(data.path, f"data set {name}")
    if not config.data and not config.accept.data_paths:
        yield (
            "data",
            lambda: checks.warn("data", "this site has no data set", "add [data.NAME] with a path"),
        )
    if not config.accept.bundles and config.accept.other_bundles == "refuse":
        yield (
            "accept",
            lambda: checks.warn(
                "accept",
                "no app bundle is accepted: every job will be refused",
                'name bundles in [accept], or set other_bundles = "ask"',
            ),
        )


def _initialized(state: Path, path: Path) -> Check:
    from server.keys.root_key import ROOT_FILE
    from server.state_directory import KEYS_FOLDER

    if (state / KEYS_FOLDER / ROOT_FILE).exists():
        return checks.ok("initialized", str(state))
    mend = f"fedlearn-server init --config {path} --operator-csr operator.csr"
    return checks.fail("initialized", f"no coordinator was initialized in {state}", mend)


def _enrollment(state: Path) -> Check:
    from edge.protocol.identity import SiteIdentity

    identity = SiteIdentity.load(state)
    if not identity.pending:
        return checks.ok("enrollment", f"site {identity.site} of {identity.gate_address}")
    mend = f"the coordinator's operator runs: fedlearn site approve {identity.site}"
    return checks.warn("enrollment", f"site {identity.site} has no certificate yet", mend)


def _extra(extra: str, *, needed_for: str) -> Check:
    extras.require(extra, needed_for=needed_for)
    return checks.ok(f"{extra} extra", "is installed")


def _flower() -> Check:
    from server.flower.aggregation.strategies import classes
    from server.flower.application import contract

    contract.check()
    classes.check_classes()
    return checks.ok("flower", "has the interfaces that a coordinator uses")


def cluster_probe(edge: Path | None) -> Probe:
    """Run the checks of a site's cluster, with the permissions of its agent."""

    def probe() -> Iterable[Check]:
        from edge.config.site import SiteConfig
        from edge.kube.api import Kube
        from edge.kube.capabilities import cluster_checks

        if edge is None:
            return (
                checks.fail("cluster", "no cluster is named", "name the site: --edge site.toml"),
            )
        settings = SiteConfig.load(edge).kubernetes
        if settings is None:
            return (
                checks.fail(
                    "cluster",
                    f"{edge} has no table [kubernetes]",
                    'add it, with launcher.kind = "kubernetes"',
                ),
            )
        kube = Kube.connect(settings.kubeconfig, namespace=settings.namespace)
        try:
            return tuple(cluster_checks(kube, settings))
        finally:
            kube.close()

    return probe


def _port(address: str, name: str) -> Probe:
    return lambda: files.port(address, name=name)


def _trust(trust: Trust) -> Iterable[Check]:
    from fedlearn.errors import ConfigError

    try:
        found = tuple(trust.unread())
    except ConfigError as error:
        return (checks.fail("trust", str(error), error.hint),)
    mend = "it is ignored: get a well-formed one from its vendor, or remove it"
    return tuple(checks.warn("trust", text, mend) for text in found)


def _readable(path: Path, name: str) -> Probe:
    return lambda: files.folder(path, name=name, write=False)


def _raiser(error: Exception) -> Probe:
    def probe() -> Check:
        raise error

    return probe


def _show(found: tuple[Check, ...]) -> None:
    width = max(len(check.name) for check in found)
    for check in found:
        mark = f"{check.level.value:<5}"
        for number, text in enumerate(check.found.splitlines() or [""]):
            head = f"{mark} {check.name:<{width}}" if number == 0 else " " * (width + 6)
            line(f"{head}  {printable(text)}", style=_STYLES[check.level])
        if check.mend and check.level is not Level.OK:
            line(f"{'':<{width + 6}}  -> {printable(check.mend)}")
    counts = {level: sum(check.level is level for check in found) for level in Level}
    line("")
    line(
        f"{counts[Level.OK]} ok, {counts[Level.WARN]} warnings, "
        f"{counts[Level.FAIL]} that will not work",
        bold=True,
    )
