"""Opens the attester that the ``[attester]`` table names.

There are two steps, because one device serves several processes: the context of :func:`device`
keeps the device ready (it starts a software TPM if the settings name one), and
:func:`open_attester` opens it, in this process or in another one.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from attestation.attesters import Attester
from fedlearn.config.attesterfile import AttesterSettings
from fedlearn.config.development_key import DEVELOPMENT_KEY, key_digest, read_key
from fedlearn.errors import ConfigError

if TYPE_CHECKING:
    from attestation.attesters.tpm import TpmAttester

__all__ = ["device", "open_attester", "open_tpm", "sample_key_digest"]


@contextmanager
def device(settings: AttesterSettings, *, state: Path) -> Iterator[AttesterSettings]:
    """Keep the attester's device ready; yield settings that any process can open.

    :raises AttesterError: when the device cannot be used, stating why.
    """
    if settings.kind == "insecure-software-tpm":
        from attestation.attesters.software_tpm import SoftwareTpm

        with SoftwareTpm(state / "software-tpm") as software:
            yield dataclasses.replace(settings, kind="tpm", tcti=software.tcti)
        return
    yield settings


def open_attester(
    settings: AttesterSettings,
    *,
    state: Path,
    scope: str = "",
    report: Callable[[str], None] | None = None,
) -> Attester:
    """Return the attester that ``settings`` name.

    ``state``   a private directory, the same for all processes that use one device
    ``scope``   separates the measurements of workloads that share one device
    ``report``  called with one line about the choice, and its reason, if ``kind`` is ``auto``

    :raises AttesterError: when it is not available.
    :raises ConfigError: when a key or file of the settings is unusable.
    """
    if settings.kind == "insecure-sample":
        return _sample(settings, state)
    if settings.kind == "insecure-software-tpm":
        raise ConfigError(
            "a software TPM is opened through its running device",
            key="attester.kind",
            hint="enter fedlearn.config.attester.device first",
        )
    from attestation.attesters.hardware import open_hardware
    from attestation.attesters.kinds import Options

    options = Options(
        state=state,
        scope=scope,
        tcti=settings.tcti,
        socket=settings.socket,
        address=settings.address,
    )
    return open_hardware(settings.kind, options, report=report)


def open_tpm(settings: AttesterSettings, *, state: Path) -> TpmAttester | None:
    """Return this machine's TPM if it makes the evidence here; else ``None``.

    :raises AttesterError: when the settings ask for a TPM that cannot be used.
    """
    if settings.kind not in ("auto", "tpm"):
        return None
    from attestation.attesters.tpm import TpmAttester

    attester = open_attester(settings, state=state)
    return attester if isinstance(attester, TpmAttester) else None


def _sample(settings: AttesterSettings, state: Path) -> Attester:
    from attestation.attesters.sample import SampleAttester

    key = read_key(_key_file(settings, state))
    hardware_id = settings.hardware_id or hashlib.sha256(str(state.resolve()).encode()).digest()
    return SampleAttester(key, hardware_id)


def sample_key_digest(settings: AttesterSettings, *, state: Path) -> bytes | None:
    """Return the digest by which others trust this machine's development key; ``None`` without.

    :raises ConfigError: when the settings name such a key, and it cannot be read.
    """
    return key_digest(_key_file(settings, state)) if settings.kind == "insecure-sample" else None


def _key_file(settings: AttesterSettings, state: Path) -> Path:
    return settings.key or state / DEVELOPMENT_KEY
