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

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.attesters import Attester
from fedlearn.config import file_bytes
from fedlearn.config.attesterfile import AttesterSettings
from fedlearn.errors import ConfigError

if TYPE_CHECKING:
    from attestation.attesters.tpm import TpmAttester

__all__ = ["device", "open_attester", "open_tpm"]

_MAX_KEY_BYTES = 64 * 1024


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

    path = settings.key or state / "insecure-development.key"
    data = file_bytes(path, limit=_MAX_KEY_BYTES, what="the development key")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError("not a private key in PEM", where=str(path)) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("a development key is an EC key on P-256", where=str(path))
    hardware_id = settings.hardware_id or hashlib.sha256(str(state.resolve()).encode()).digest()
    return SampleAttester(key, hardware_id)
