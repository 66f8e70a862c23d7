"""The values that the fields of an event may have, checked and bounded when an event is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, cast

__all__ = ["Findings", "checked", "json_ready"]

_MAX_TEXT: Final = 16 * 1024
_MAX_ITEMS: Final = 10_000
_MAX_INTEGER: Final = 2**63 - 1

Findings = tuple[Mapping[str, Any], ...]
"""What :meth:`attestation.policy.result.Finding.to_json` returns, several of them."""


def checked(value: object, hint: object, name: str) -> object:
    """Return ``value`` for the field ``name``, whose annotation is ``hint``; text is cut to 16 KiB.

    :raises ValueError: when it has another type or is out of bounds.
    """
    if hint is str:
        return _text(value, name)
    if hint is int:
        if type(value) is not int or not 0 <= value <= _MAX_INTEGER:
            raise ValueError(f"{name} must be a whole number from 0, not {_shown(value)}")
        return value
    if hint is float:
        return _number(value, name)
    if hint == tuple[str, ...]:
        return tuple(_text(item, name) for item in _sequence(value, name))
    if hint == Findings:
        return tuple(MappingProxyType(dict(_mapping(v, name))) for v in _sequence(value, name))
    if hint == Mapping[str, float]:
        # A diverged metric is NaN or infinite: it is shown, and JSON cannot carry it.
        found = {_text(key, name): item for key, item in _mapping(value, name).items()}
        return MappingProxyType({key: _metric(item, name) for key, item in found.items()})
    return MappingProxyType(dict(_mapping(value, name)))


def _metric(value: object, name: str) -> float:
    named = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
    if isinstance(value, str) and value in named:
        return named[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be numbers, not {_shown(value)}")
    return float(value)


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a number, not {_shown(value)}")
    return float(value)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, not {_shown(value)}")
    return value if len(value) <= _MAX_TEXT else value[: _MAX_TEXT - 1] + "…"


def _sequence(value: object, name: str) -> tuple[object, ...]:
    if not isinstance(value, list | tuple) or len(value) > _MAX_ITEMS:
        raise ValueError(f"{name} must be a list of at most {_MAX_ITEMS}")
    return tuple(value)


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or len(value) > _MAX_ITEMS:
        raise ValueError(f"{name} must be an object of at most {_MAX_ITEMS} members")
    return cast("Mapping[str, Any]", value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"


def json_ready(value: object) -> object:
    """Return what :func:`json.dumps` takes; a number that is not finite becomes its name."""
    if isinstance(value, Mapping):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [json_ready(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
