"""The app's part of ``[privacy]``: DP-SGD over examples, and the clipped mean over users.

For these units the app itself clips, and for examples also adds the noise. Its numbers are those of
its job (:mod:`fedlearn.privacy.app_config`), which the accountant has, too. What holds is a
guarantee of this app, whose digest is in the job: fedlearn's own code does not see gradients.

*Examples* (``mechanism = "dp-sgd"``)::

    model, optimizer, loader = make_private(model, optimizer, loader, context)
    for images, labels in loader:           # the steps of the job, drawn by Poisson sampling
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()

Opacus computes and clips the gradients of single examples. The draws and the noise are ours: from
AES-256 in counter mode under a secret of the operating system, for each call of
:func:`make_private`, and rounded to a grid (:class:`fedlearn.privacy.GridNoise`), so that neither
torch's generator nor the gaps between floating-point numbers disclose more than the accountant
counts. Sums of gradients in float32 are counted as exact, as Opacus does.

*Users* (``unit = "user"``)::

    train_users(model, users_of(columns, context), train, context)

The page is docs/how-to/choose-privacy.md.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from flwr.app import Context
from numpy.typing import NDArray
from torch import nn

from fedlearn import extras
from fedlearn.errors import ConfigError, PrivacyError
from fedlearn.privacy.app_config import PREFIX
from fedlearn.privacy.chain import GridNoise
from fedlearn.privacy.noise import GaussianStream, round_bytes

__all__ = ["make_private", "train_users", "users_of"]

_WORDS: Final = 2.0**64
_MARGIN: Final = 1 - 2.0**-40


def make_private(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: torch.utils.data.DataLoader[Any],
    context: Context,
) -> tuple[Any, Any, torch.utils.data.DataLoader[Any]]:
    """Return model, optimizer and loader for DP-SGD with the numbers of the job.

    The model that is returned computes gradients of single examples. Its weights are those of the
    one that was given; evaluate either without gradients. The loader has as many batches as the
    job has ``steps``; each example of the data is in each with probability ``batch_rate``, so a
    batch may be empty. The loss is a mean over the batch; the gradient is divided by the expected
    size of a batch.

    :raises ConfigError: when the extra ``dp`` is not installed, or the job is not one with
        ``mechanism = "dp-sgd"``.
    :raises PrivacyError: for a model whose layers mix the examples of a batch, as batch
        normalisation does, and for data without an example. The optimizer raises it for a step
        beyond those of the job.
    """
    extras.require("dp", needed_for="DP-SGD")
    from opacus.data_loader import wrap_collate_with_empty
    from opacus.grad_sample import GradSampleModule
    from opacus.validators import ModuleValidator

    from fedlearn.training.private_optimizer import PrivateOptimizer

    clip, rate = (
        float(_of(context, "clip", "example")),
        float(_of(context, "batch-rate", "example")),
    )
    steps = int(_of(context, "steps", "example"))
    size = len(loader.dataset)  # type: ignore[arg-type]
    if size == 0:
        raise PrivacyError("DP-SGD needs at least one example at a site")
    faults = ModuleValidator.validate(model, strict=False)
    if faults:
        raise PrivacyError(
            f"the model cannot be trained with DP-SGD: {faults[0]}",
            hint="use group or layer normalisation, and no layer that mixes examples",
        )
    secret = _secret(context)
    wrapped = GradSampleModule(model)
    private = PrivateOptimizer(
        optimizer,
        noise=lambda step: GridNoise(
            multiplier=float(_of(context, "noise-multiplier", "example")),
            sensitivity=clip,
            secret=secret,
            purpose=b"gradient" + round_bytes(step),
        ),
        steps=steps,
        clip=clip,
        expected=rate * size,
    )
    batches = torch.utils.data.DataLoader(
        loader.dataset,
        batch_sampler=list(_draws(secret, size, rate, steps)),
        collate_fn=wrap_collate_with_empty(
            collate_fn=loader.collate_fn,
            sample_empty_shapes=None,
        ),
    )
    _learn_empty(batches)
    return wrapped, private, batches


def users_of(
    columns: Mapping[str, Sequence[object]], context: Context
) -> dict[object, NDArray[np.int64]]:
    """Return the positions of each user's records, by the column that the job names.

    ``columns`` are those of the site's records, all of one length. The users are in the order in
    which they come first.

    :raises PrivacyError: when the records have no such column.
    :raises ConfigError: when the job is not one with ``unit = "user"``.
    """
    column = str(_of(context, "user-column", "user"))
    if column not in columns:
        raise PrivacyError(
            f"the records have no column {column!r}, which names the user; they have "
            f"{', '.join(sorted(columns)) or 'none'}",
            hint="set user_column in [privacy] to the column of this data",
        )
    found: dict[object, list[int]] = {}
    for position, user in enumerate(columns[column]):
        found.setdefault(user, []).append(position)
    return {user: np.array(positions, np.int64) for user, positions in found.items()}


def train_users(
    model: nn.Module,
    users: Mapping[Any, NDArray[np.int64]],
    train: Callable[[nn.Module, NDArray[np.int64]], None],
    context: Context,
) -> None:
    """Train ``model`` by the mean of its users' clipped contributions.

    For each user, ``train(copy, positions)`` trains a copy of the model on that user's records
    only. The difference is clipped to ``clip`` of the job over all parameters together, and the
    sum is divided by ``users`` of the job, whatever number of users there is here. The noise is
    added later, by the client or by the aggregator. Buffers of the model stay as they are.

    :raises PrivacyError: when the training of a user gives NaN or infinity.
    :raises ConfigError: when the job is not one with ``unit = "user"``.
    """
    clip, count = float(_of(context, "clip", "user")), int(_of(context, "users", "user"))
    base = [each.detach().clone().double() for each in model.parameters()]
    total = [torch.zeros_like(each) for each in base]
    for positions in users.values():
        own = copy.deepcopy(model)
        train(own, positions)
        moved = [
            after.detach().double() - before
            for after, before in zip(own.parameters(), base, strict=True)
        ]
        norm = math.sqrt(math.fsum(float(each.square().sum()) for each in moved))
        if not math.isfinite(norm):
            raise PrivacyError(
                "the contribution of a user contains NaN or infinity",
                hint="training diverged; lower the learning rate",
            )
        scale = min(1.0, clip / norm * _MARGIN) if norm else 1.0
        for sum_, each in zip(total, moved, strict=True):
            sum_ += each * scale
    with torch.no_grad():
        for parameter, before, sum_ in zip(model.parameters(), base, total, strict=True):
            parameter.copy_(before + sum_ / count)


def _of(context: Context, key: str, unit: str) -> Any:
    """Return a number of the job's ``[privacy]`` table."""
    config = context.node_config
    if config.get(f"{PREFIX}unit") != unit:
        raise ConfigError(
            f'the job does not protect each {unit}: its [privacy] has no unit = "{unit}"',
            hint="see docs/how-to/choose-privacy.md",
        )
    return config[PREFIX + key]


def _secret(context: Context) -> bytes:
    """Return the secret of one call: fresh, unless the noise of the job may be known."""
    given = context.node_config.get(f"{PREFIX}insecure-secret")
    if given is None:
        return os.urandom(32)
    # Python's generator is seeded from the job's seed, the site and the round.
    return hashlib.sha256(bytes.fromhex(str(given)) + random.randbytes(32)).digest()  # noqa: S311


def _draws(secret: bytes, size: int, rate: float, steps: int) -> Iterator[list[int]]:
    """Yield the examples of each step; each is drawn with probability ``rate``."""
    for step in range(steps):
        words = GaussianStream(secret, b"batch" + round_bytes(step)).words(size)
        drawn = words.astype(np.float64) < rate * _WORDS
        yield [int(index) for index in np.flatnonzero(drawn)]


def _learn_empty(loader: torch.utils.data.DataLoader[Any]) -> None:
    """Show the collation one example, so that it can make an empty batch of this form."""
    collate: Any = loader.collate_fn
    collate([loader.dataset[0]])
