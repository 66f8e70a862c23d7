"""What people call the model of a job, and its name in the store.

The model of a run has the id of the run (:mod:`fedlearn.job.run`), the files of its app that id
and ``.files``. People name either by a reference of the run: ``heart``, ``heart@2``,
``heart.files``.
"""

from __future__ import annotations

from typing import Final

from fedlearn.errors import ConfigError
from fedlearn.job.run import RunName, checked_reference

__all__ = ["FILES", "is_of_job", "run_of_model"]

FILES: Final = ".files"
"""What the name of an app's files has behind the id of the run."""


def is_of_job(run_id: str, reference: str) -> bool:
    """Return whether a run is one of those that ``NAME`` (all runs) or ``NAME@N`` names.

    >>> is_of_job("heart.2", "heart"), is_of_job("heart.2", "heart@1")
    (True, False)

    :raises ConfigError: when ``reference`` names no job.
    """
    name, number = checked_reference(reference)
    run = _run(run_id)
    return run is not None and run.name == name and number in (None, run.number)


def run_of_model(model: str, reference: str) -> int:
    """Return the number of the run that ``model`` belongs to, if ``reference`` names it; else 0.

    >>> run_of_model("heart.2.files", "heart.files"), run_of_model("heart.2", "heart.files")
    (2, 0)
    """
    if model.endswith(FILES) != reference.endswith(FILES):
        return 0
    run = _run(model.removesuffix(FILES))
    try:
        named = run is not None and is_of_job(run.id, reference.removesuffix(FILES))
    except ConfigError:
        named = False
    return run.number if run is not None and named else 0


def _run(run_id: str) -> RunName | None:
    try:
        return RunName.of_id(run_id)
    except ConfigError:
        return None
