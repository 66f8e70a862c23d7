"""A torch model with the arrays of a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedlearn.errors import ConfigError

__all__ = ["load_arrays", "logits", "named_for"]

_BATCH: Final = 1024


def named_for(model: nn.Module, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Return the arrays by the names of the model's ``state_dict``.

    Arrays without such names (a list of arrays has the names ``0``, ``1``, ...) are taken in the
    order of the ``state_dict``.

    :raises ConfigError: when a name is missing, or a shape differs.
    """
    state = model.state_dict()
    if not set(state) <= set(arrays):
        missing = sorted(set(state) - set(arrays))
        if len(arrays) != len(state) or set(state) & set(arrays):
            raise ConfigError(
                f"the model has the array {missing[0]!r}, and the job's has not; it has "
                f"{', '.join(sorted(arrays)[:8])}",
                hint="audit.toml names the function that makes the model of the app",
            )
        arrays = dict(zip(state, arrays.values(), strict=True))
    found = {}
    for name, tensor in state.items():
        if tuple(tensor.shape) != arrays[name].shape:
            raise ConfigError(
                f"the array {name!r} has the shape {arrays[name].shape} in the job, and "
                f"{tuple(tensor.shape)} in the model",
                hint="audit.toml names the function that makes the model of the app",
            )
        found[name] = torch.from_numpy(np.array(arrays[name])).to(tensor.dtype)
    return found


def load_arrays(model: nn.Module, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Put the arrays of a job into a model.

    :raises ConfigError: when they are not those of the model.
    """
    model.load_state_dict(named_for(model, arrays))


def logits(model: nn.Module, examples: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return what the model answers, (n, classes).

    :raises ConfigError: when it is not one row of logits for each example.
    """
    with torch.no_grad():
        parts = [model(part) for part in torch.from_numpy(examples).split(_BATCH)]
        found = torch.cat(parts).double().numpy()
    if found.ndim != 2:
        raise ConfigError(
            f"the model answers with shape {found.shape} for {len(examples)} examples, not with "
            "one row of logits for each"
        )
    return np.asarray(found, dtype=np.float64)
