"""What a ClientApp keeps between its rounds: named tensors in ``context.state``.

The page is docs/explanation/algorithms.md.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord, Context

from fedlearn.app.array_records import arrays_of
from fedlearn.app.state_dict import record_of_state_dict
from fedlearn.errors import JobError, UpdateRejected
from fedlearn.update.torch import fill_state_dict

__all__ = ["Tensors", "copies", "keep", "kept", "kept_or_zeros", "read"]

Tensors = dict[str, torch.Tensor]


def keep(context: Context, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Keep copies of tensors under a name, in place of what was there."""
    context.state[name] = record_of_state_dict(dict(tensors))


def kept(context: Context, name: str, like: Mapping[str, torch.Tensor]) -> Tensors | None:
    """Return what was kept under a name, on the devices of ``like``; None where nothing was.

    :raises JobError: when it has other names, types or shapes than ``like``.
    """
    record = context.state.get(name)
    if record is None:
        return None
    return read(record, name, like)


def kept_or_zeros(context: Context, name: str, like: Mapping[str, torch.Tensor]) -> Tensors:
    """Return what was kept under a name, or zeros like ``like``; see :func:`kept`."""
    found = kept(context, name, like)
    return {key: torch.zeros_like(each) for key, each in like.items()} if found is None else found


def read(record: object, what: str, like: Mapping[str, torch.Tensor]) -> Tensors:
    """Return those tensors of a record that ``like`` names, in its types and on its devices.

    :raises JobError: when it has no such tensor, or one of another type or shape.
    """
    if not isinstance(record, ArrayRecord):
        raise JobError(f"{what} is not an ArrayRecord")
    found = {name: torch.empty_like(each) for name, each in like.items()}
    try:
        arrays = arrays_of(record)
        if missing := [name for name in like if name not in arrays]:
            raise UpdateRejected(f"it has no array {missing[0]!r}")
        fill_state_dict(found, {name: arrays[name] for name in like})
    except UpdateRejected as error:
        raise JobError(
            f"{what} does not fit the model: {error}",
            hint="the arrays of a message have the names of the model: "
            "ArrayRecord(model.state_dict())",
        ) from None
    return found


def copies(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Return copies that no gradient flows to."""
    return {name: each.detach().clone() for name, each in tensors.items()}
