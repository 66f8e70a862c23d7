"""Data sets of Hugging Face's Hub by their names, out of local files and of bundled sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from fedlearn import extras
from fedlearn.data.sources import load
from fedlearn.errors import ConfigError

__all__ = ["BUNDLED", "loader"]

_NEED: Final = "a data set by its name on the Hub"


def _fashion() -> Any:
    datasets: Any = extras.load("datasets", needed_for=_NEED)
    examples = load("fashion-mnist")
    features = datasets.Features(
        {
            "image": datasets.Image(mode="L"),
            "label": datasets.ClassLabel(names=list(examples.classes)),
        }
    )

    def split(x: Any, y: Any) -> Any:
        def rows() -> Any:
            pillow: Any = extras.load("PIL.Image", needed_for=_NEED)
            for pixels, label in zip(x, y, strict=True):
                yield {"image": pillow.fromarray(pixels), "label": int(label)}

        return datasets.Dataset.from_generator(rows, features=features)

    test_x, test_y = examples.test or (examples.x[:0], examples.y[:0])
    return datasets.DatasetDict(
        {"train": split(examples.x, examples.y), "test": split(test_x, test_y)}
    )


def _iris(names: Mapping[str, str], label: str, *, text: bool) -> Any:
    datasets: Any = extras.load("datasets", needed_for=_NEED)
    examples = load("sklearn:iris")
    columns: dict[str, Any] = {new: examples.columns[old] for old, new in names.items()}
    if text:
        columns = {"Id": list(range(1, len(examples.y) + 1)), **columns}
        columns[label] = [f"Iris-{examples.classes[number]}" for number in examples.y]
    else:
        columns[label] = examples.y
    return datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns)})


_SKLEARN: Final = ("petal length (cm)", "petal width (cm)", "sepal length (cm)", "sepal width (cm)")


def _plain_iris() -> Any:
    names = {old: old.removesuffix(" (cm)").replace(" ", "_") for old in _SKLEARN}
    return _iris(names, "species", text=False)


def _cm_iris() -> Any:
    names = {old: old.removesuffix(" (cm)").title().replace(" ", "") + "Cm" for old in _SKLEARN}
    return _iris(names, "Species", text=True)


BUNDLED: Final[Mapping[str, Callable[[], Any]]] = MappingProxyType(
    {
        "zalando-datasets/fashion_mnist": _fashion,
        "hitorilabs/iris": _plain_iris,
        "scikit-learn/iris": _cm_iris,
    }
)
"""Names whose data sets packages of this machine have, with the columns of the originals."""


def loader(folder: Path, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a ``datasets.load_dataset`` that reads data sets by name from below ``folder``.

    A name that is neither there nor in :data:`BUNDLED` is refused, so that nothing waits for
    a network. Names of formats (``csv``, ``parquet``) and paths are loaded as before.
    """

    def load_dataset(path: str, name: str | None = None, **keywords: Any) -> Any:
        local = folder / path
        if ".." not in Path(path).parts and not Path(path).is_absolute() and local.is_dir():
            return original(str(local), name, **keywords)
        if path in BUNDLED:
            found = BUNDLED[path]()
            split = keywords.get("split")
            return found if split is None else found[split]
        if "/" in path and not Path(path).exists():
            raise ConfigError(
                f"the data set {path!r} is not on this machine",
                where=str(local),
                hint="put its files into this folder; nothing is downloaded",
            )
        return original(path, name, **keywords)

    return load_dataset
