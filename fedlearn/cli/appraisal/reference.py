"""``fedlearn policy reference``: computes reference values from files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from attestation.errors import EventLogError, EvidenceError
from attestation.evidence import Tee
from attestation.logs.eventlog import MAX_LOG_BYTES
from attestation.policy.draft import reference_text
from attestation.policy.model import ReferenceValue
from attestation.policy.references import (
    MAX_INITDATA_BYTES,
    MONITORS,
    event_references,
    image_references,
    initdata_references,
    log_references,
    snp_launch_reference,
)
from fedlearn.config import file_bytes
from fedlearn.errors import ConfigError
from fedlearn.terminal.console import Commands

__all__ = ["reference"]

_PATH = click.Path(path_type=Path)
_name_option = click.option(
    "--name", default="", metavar="TEXT", help="The name of the value in the policy."
)


@click.group(cls=Commands)
def reference() -> None:
    """Compute reference values, as text to add to a policy."""


@reference.command()
@click.argument("file", type=_PATH)
@_name_option
def initdata(file: Path, name: str) -> None:
    """The digest of an initdata document, for HOST_DATA and MRCONFIGID."""
    data = file_bytes(file, limit=MAX_INITDATA_BYTES, what="initdata")
    _print(initdata_references(data, name=name))


@reference.command(name="event-log")
@click.argument("file", type=_PATH)
@click.option("--tee", type=click.Choice(("tdx", "tpm")), default="tdx", show_default=True)
@click.option(
    "--events", is_flag=True, help="Name every event of RTMR1 and RTMR2, not the registers."
)
@_name_option
def event_log(file: Path, tee: str, events: bool, name: str) -> None:
    """The values of the registers after the replay of a known event log.

    With --events a policy accepts these events in any order and number, for machines whose
    registers differ from boot to boot.
    """
    if events and tee != Tee.TDX:
        raise ConfigError("is for tdx", where="--events", hint="a policy pins the PCRs of a TPM")
    data = file_bytes(file, limit=MAX_LOG_BYTES, what="event log")
    try:
        _print(
            event_references(data, name=name)
            if events
            else log_references(data, tee=Tee(tee), name=name)
        )
    except (EvidenceError, EventLogError) as error:
        raise ConfigError(str(error), where=str(file), hint=error.hint) from None


@reference.command()
@click.argument("image")
@_name_option
def image(image: str, name: str) -> None:
    """The digest of a container image, named as registry/image@sha256:…"""
    _print(image_references(image, name=name))


@reference.command()
@click.option("--ovmf", type=_PATH, required=True, metavar="FILE", help="The guest's firmware.")
@click.option("--vcpus", type=click.IntRange(1), required=True, metavar="N")
@click.option("--vcpu-type", default="EPYC-v4", show_default=True, metavar="NAME")
@click.option("--kernel", type=_PATH, default=None, metavar="FILE")
@click.option("--initrd", type=_PATH, default=None, metavar="FILE")
@click.option("--append", default="", metavar="TEXT", help="The kernel's command line.")
@click.option("--guest-features", type=click.IntRange(0), default=1, show_default=True)
@click.option("--vmm", type=click.Choice(tuple(MONITORS)), default="qemu", show_default=True)
@_name_option
def snp(
    ovmf: Path,
    vcpus: int,
    vcpu_type: str,
    kernel: Path | None,
    initrd: Path | None,
    append: str,
    guest_features: int,
    vmm: str,
    name: str,
) -> None:
    """The launch digest of an SNP guest (needs sev-snp-measure)."""
    for path in (ovmf, kernel, initrd):
        if path is not None and not path.is_file():
            raise ConfigError("does not exist, or is not a file", where=str(path))
    _print(
        [
            snp_launch_reference(
                ovmf=ovmf,
                vcpus=vcpus,
                vcpu_type=vcpu_type,
                kernel=kernel,
                initrd=initrd,
                append=append,
                guest_features=guest_features,
                vmm=vmm,
                name=name,
            )
        ]
    )


def _print(references: Iterable[ReferenceValue]) -> None:
    click.echo("\n".join(reference_text(item) for item in references), nl=False)
