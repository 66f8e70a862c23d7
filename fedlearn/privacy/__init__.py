"""Differential privacy of updates, applied outside of user code.

Clients clip their updates inside their TEEs (:class:`ClientPrivacy`). Noise is added by the
aggregator to the sum (:class:`ServerPrivacy`), or by the clients, and every round is charged before
it begins (:class:`Budget`). :mod:`fedlearn.privacy.spec` names the units and the mechanisms.

What is guaranteed, for a job whose rounds all pass through these three: the sequence of
global models is (epsilon, delta)-differentially private for the unit and the adjacency that
the :class:`PrivacySpec` names, for observers who do not know the noise secret. It is a
computational guarantee, as the noise comes from a cipher. It does not cover what leaves in
addition to the models: metrics, numbers of examples, the time that a site takes.

The page is docs/tutorials/study-privacy.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from fedlearn.privacy.spec import PrivacySpec

if TYPE_CHECKING:
    from fedlearn.privacy.accountant import Spent, noise_multiplier_for, rounds_within, spent
    from fedlearn.privacy.budget import Budget
    from fedlearn.privacy.chain import Chain, Clip, GridNoise, Step, l2_norm
    from fedlearn.privacy.client import ClientPrivacy
    from fedlearn.privacy.server import ServerPrivacy, noise_secret, simulated_secret

__all__ = [
    "Budget",
    "Chain",
    "ClientPrivacy",
    "Clip",
    "GridNoise",
    "PrivacySpec",
    "ServerPrivacy",
    "Spent",
    "Step",
    "l2_norm",
    "noise_multiplier_for",
    "noise_secret",
    "rounds_within",
    "simulated_secret",
    "spent",
]

_HOMES: Final = {
    "Budget": "budget",
    "Chain": "chain",
    "ClientPrivacy": "client",
    "Clip": "chain",
    "GridNoise": "chain",
    "ServerPrivacy": "server",
    "Spent": "accountant",
    "Step": "chain",
    "l2_norm": "chain",
    "noise_multiplier_for": "accountant",
    "noise_secret": "server",
    "rounds_within": "accountant",
    "simulated_secret": "server",
    "spent": "accountant",
}


def __getattr__(name: str) -> Any:
    """Import the modules that compute on first use: reading a job needs no numpy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found
