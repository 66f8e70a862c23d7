"""What an app receives of the ``[privacy]`` table of its job, in ``context.node_config``.

For the units ``example`` and ``user`` the app does a part of the mechanism. It gets the numbers
from the job, as the accountant has them, and not from its own configuration:
:mod:`fedlearn.training.private` reads them.

The page is docs/how-to/choose-privacy.md.
"""

from __future__ import annotations

from typing import Final

from fedlearn.privacy.spec import PrivacySpec

__all__ = ["PREFIX", "app_config"]

PREFIX: Final = "privacy-"
"""How the keys begin; the rest is the key of the table, with hyphens."""

_KEYS: Final = (
    "unit",
    "clip",
    "noise_multiplier",
    "batch_rate",
    "steps",
    "users",
    "user_column",
)


def app_config(
    spec: PrivacySpec | None, secret: bytes, *, simulated: bool = False
) -> dict[str, str | int | float | bool]:
    """Return the keys for an app; none where the app has no part in the privacy of its job.

    ``secret`` is that of the client. It is passed on only where the noise may be known: with
    ``insecure_deterministic_noise``, and in a simulation. Otherwise the app draws its own from the
    operating system.

    >>> app_config(None, b"")
    {}
    """
    if spec is None or spec.unit == "site":
        return {}
    found: dict[str, str | int | float | bool] = {}
    for key in _KEYS:
        value = getattr(spec, key)
        if value is not None:
            found[PREFIX + key.replace("_", "-")] = value
    if spec.noised_by_app and (simulated or spec.insecure_deterministic_noise):
        found[f"{PREFIX}insecure-secret"] = secret.hex()
    return found
