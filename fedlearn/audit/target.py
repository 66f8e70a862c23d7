"""``audit.toml``: what an audit must know of an app beyond its job.

::

    file = "digits.csv"                    # the records in a site's folder; data.npz by default
    trained = 0.8                          # the app trains on the first 4 of 5 rows
    model = "digits_app.task:new_model"    # () -> torch.nn.Module
    scale = 0.0625                         # the app multiplies the numbers of the file with it
    image = [8, 8]                         # one example as a picture
    rate_key = "learning-rate"             # the key of the run config with the step size

An app without torch names ``predict = "module:function"``, a function of the list of weights and
of examples that returns logits (n, classes).

The page is docs/how-to/audit.md.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from attestation.config import InconsistentValues, number, option, seq, text, whole
from fedlearn import config as reading
from fedlearn import extras
from fedlearn.app.checks import check_folder
from fedlearn.audit.site_data import Records, divide, read_records, read_sites
from fedlearn.errors import ConfigError
from fedlearn.job.spec import MAX_JOB_TOML_BYTES, JobSpec

if TYPE_CHECKING:
    from torch import nn

    from fedlearn.audit.attacks.gradient_inversion import Loss

__all__ = ["AuditSpec", "AuditTarget", "Predictor"]

Arrays = Mapping[str, NDArray[Any]]
Predictor = Callable[[Arrays, NDArray[np.float32]], NDArray[np.float64]]
"""From the arrays of a model and examples as the model takes them to logits (n, classes)."""

_CROSS_ENTROPY: Final = "cross-entropy"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSpec:
    """What ``audit.toml`` states; without the file, the defaults.

    ``file``     the records in a site's folder (:mod:`fedlearn.audit.site_data`)
    ``trained``  the part of them, from the first row on, that the app trains on
    ``test``     a file with records that the app does not train on; used where it is
    ``model``    a function of the app that returns its torch model, as ``module:function``
    ``predict``  in place of ``model``: a function of weights and examples that returns logits
    ``loss``     ``cross-entropy``, or a function of the app of logits and labels
    ``scale``, ``offset``
                 the app multiplies the numbers of the file with the first and adds the second
    ``shape``    of one example as the model takes it; as in the file by default
    ``image``    of one example as a picture: height and width, or channels, height and width; the
                 shape by default
    ``low``, ``high``
                 the values that an example can have, after scaling
    ``rate``     step size of the app's training
    ``rate_key`` in place of ``rate``: the key of the app's run config that has it

    :raises InconsistentValues: from the constructor, naming the key.
    """

    file: str = option(text(most=255), default="data.npz")
    trained: float = option(number(0.01, 1), default=1.0)
    test: str = option(text(most=255), default="test.npz")
    model: str = option(text(least=0, most=255), default="")
    predict: str = option(text(least=0, most=255), default="")
    loss: str = option(text(most=255), default=_CROSS_ENTROPY)
    scale: float = option(number(-1e9, 1e9), default=1.0)
    offset: float = option(number(-1e9, 1e9), default=0.0)
    shape: tuple[int, ...] = option(seq(whole(1, 100_000), most=8), default=())
    image: tuple[int, ...] = option(seq(whole(1, 100_000), most=3), default=())
    low: float = option(number(-1e9, 1e9), default=0.0)
    high: float = option(number(-1e9, 1e9), default=1.0)
    rate: float | None = option(number(1e-12, 1e9), default=None)
    rate_key: str = option(text(least=0, most=255), default="")

    def __post_init__(self) -> None:
        faults = []
        if self.model and self.predict:
            faults.append((("predict",), "excludes `model`; name one of them"))
        if self.rate is not None and self.rate_key:
            faults.append((("rate_key",), "excludes `rate`; name one of them"))
        if not self.low < self.high:
            faults.append((("high",), f"must be above low = {self.low:g}, not {self.high:g}"))
        if self.scale == 0:
            faults.append((("scale",), "must not be 0"))
        for key, name in (("file", self.file), ("test", self.test)):
            if Path(name).name != name or Path(name).suffix not in {".npz", ".csv"}:
                faults.append(((key,), f"must be the name of a .npz or .csv, not {name!r}"))
        for key, value in (("model", self.model), ("predict", self.predict), ("loss", self.loss)):
            if value and value != _CROSS_ENTROPY and value.count(":") != 1:
                faults.append(((key,), f'must be "module:function", not "{value}"'))
        if faults:
            raise InconsistentValues(*faults)


class AuditTarget:
    """A job, its data and what ``audit.toml`` states of its app.

    :param job: the job's file, or its folder. Its policy is not read.
    :param data: the folder with a folder of data for each site; ``data`` beside the job by default.
    :param spec: the audit's file; ``audit.toml`` beside the job by default, if there is one.
    :raises ConfigError: naming file, line and key of everything that is wrong.
    """

    def __init__(self, job: Path, *, data: Path | None = None, spec: Path | None = None) -> None:
        self.path = job / "job.toml" if job.is_dir() else job
        raw = reading.file_bytes(
            self.path, limit=MAX_JOB_TOML_BYTES, what="the job", made_by="fedlearn job init"
        )
        self.job = reading.read(JobSpec, raw, where=str(self.path))
        self.data = data if data is not None else self.path.parent / "data"
        beside = self.path.parent / "audit.toml"
        self.spec_file = spec if spec is not None else beside
        if spec is not None or beside.is_file():
            self.spec = reading.read_file(AuditSpec, self.spec_file)
        else:
            self.spec = AuditSpec()

    @cached_property
    def records(self) -> dict[str, Records]:
        """The records of each site, in the order of the job's sites."""
        return read_sites(self.data, self.job.sites, self.spec.file)

    def divided(self) -> tuple[dict[str, Records], dict[str, Records]]:
        """Return the records of each site that the app trains on, and the others.

        The others are the rows of the file after those, and the test file where there is one.
        """
        train, others = {}, {}
        for site, records in self.records.items():
            train[site], others[site] = divide(records, self.spec.trained)
            test = self.data / site / self.spec.test
            if test.is_file():
                others[site] = others[site].joined(read_records(test))
        return train, others

    @cached_property
    def classes(self) -> int:
        """How many labels there are: one more than the largest."""
        found = max(records.classes for records in self.records.values())
        if found < 2:
            raise ConfigError(f"has {found} classes; an audit needs 2", where=str(self.data))
        return found

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example as the model takes it.

        :raises ConfigError: when the examples have another number of values.
        """
        found = tuple(next(iter(self.records.values())).x.shape[1:])
        shape = self.spec.shape or found
        for key, value in (("shape", shape), ("image", self.spec.image or shape)):
            if math.prod(value) != math.prod(found):
                raise ConfigError(
                    f"{list(value)} has {math.prod(value)} values, and an example of "
                    f"{self.spec.file} has {math.prod(found)}",
                    where=str(self.spec_file),
                    key=key,
                )
        return shape

    @property
    def image(self) -> tuple[int, ...]:
        """Shape of one example as a picture; of one axis where it is none."""
        shape = self.shape
        return self.spec.image or shape[-3:]

    def inputs(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Return examples of a file as the model takes them."""
        scaled = np.asarray(x, dtype=np.float32) * np.float32(self.spec.scale)
        return (scaled + np.float32(self.spec.offset)).reshape(len(x), *self.shape)

    def in_file(self, value: float) -> float:
        """Return what a number of the file is where the model takes ``value``."""
        return (value - self.spec.offset) / self.spec.scale

    def rate(self) -> float:
        """Return the step size of the app's training.

        :raises ConfigError: when ``audit.toml`` names none.
        """
        if self.spec.rate is not None:
            return self.spec.rate
        if not self.spec.rate_key:
            raise ConfigError(
                "is needed to read a gradient from an update: the step size of the app",
                where=str(self.spec_file),
                key="rate",
                hint='rate = 0.05, or rate_key = "learning-rate" for a key of the run config',
            )
        config = {**check_folder(self.app_folder()).defaults, **self.job.config}
        value = config.get(self.spec.rate_key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ConfigError(
                f"{self.spec.rate_key!r} is {value!r} in the run config, not a step size",
                where=str(self.spec_file),
                key="rate_key",
                hint=f"the run config has {', '.join(sorted(config)) or 'no key'}",
            )
        return float(value)

    def new_model(self) -> nn.Module:
        """Return the app's torch model, in evaluation mode.

        :raises ConfigError: when ``audit.toml`` names none, or its function returns another thing.
        """
        torch = extras.load("torch", needed_for="this audit")
        if not self.spec.model:
            raise ConfigError(
                "is needed by this audit: the function of the app that returns its torch model",
                where=str(self.spec_file),
                key="model",
                hint='for example model = "my_app.task:new_model"',
            )
        model = self._function("model", self.spec.model)()
        if not isinstance(model, torch.nn.Module):
            raise ConfigError(
                f"{self.spec.model} returned a {type(model).__name__}, not a torch.nn.Module",
                where=str(self.spec_file),
                key="model",
            )
        return model.eval()  # type: ignore[no-any-return]

    def loss(self) -> Loss:
        """Return the loss of a batch, a function of logits and labels."""
        torch = extras.load("torch", needed_for="this audit")
        if self.spec.loss == _CROSS_ENTROPY:
            return torch.nn.functional.cross_entropy  # type: ignore[no-any-return]
        return self._function("loss", self.spec.loss)

    def predictor(self) -> Predictor:
        """Return the function from a model's arrays and examples to logits.

        :raises ConfigError: when ``audit.toml`` names neither ``model`` nor ``predict``.
        """
        if self.spec.predict:
            function = self._function("predict", self.spec.predict)

            def predict(arrays: Arrays, x: NDArray[np.float32]) -> NDArray[np.float64]:
                found = np.asarray(function(list(arrays.values()), x), dtype=np.float64)
                if found.ndim != 2 or len(found) != len(x):
                    raise ConfigError(
                        f"{self.spec.predict} returned an array of shape {found.shape} for "
                        f"{len(x)} examples, not ({len(x)}, classes)",
                        where=str(self.spec_file),
                        key="predict",
                    )
                return found

            return predict
        if not self.spec.model:
            raise ConfigError(
                "or `predict` is needed by this audit: how the app's model answers",
                where=str(self.spec_file),
                key="model",
                hint='for example model = "my_app.task:new_model"',
            )
        from fedlearn.audit.torch_model import load_arrays, logits

        model = self.new_model()

        def answer(arrays: Arrays, x: NDArray[np.float32]) -> NDArray[np.float64]:
            load_arrays(model, arrays)
            return logits(model, x)

        return answer

    def app_folder(self) -> Path:
        """Return the folder of the app; raises ConfigError when it is a bundle."""
        folder = self.path.parent / self.job.app
        if not folder.is_dir():
            raise ConfigError(
                "is not a folder, and an audit imports functions of the app",
                where=str(folder),
                key="app",
                hint="unpack the bundle, and name its folder as `app`",
            )
        return folder.resolve()

    def _function(self, key: str, reference: str) -> Callable[..., Any]:
        module, _, name = reference.partition(":")
        with _importable(self.app_folder()):
            try:
                found = getattr(importlib.import_module(module), name)
            except (ImportError, AttributeError) as error:
                raise ConfigError(
                    f"{reference} cannot be imported from the app: {error}",
                    where=str(self.spec_file),
                    key=key,
                ) from None
        if not callable(found):
            raise ConfigError(f"{reference} is not a function", where=str(self.spec_file), key=key)
        return found  # type: ignore[no-any-return]


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put the app on the module path; afterwards its modules are forgotten.

    The simulator imports the app from a copy of its own.
    """
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).resolve().is_relative_to(folder):
                del sys.modules[name]
