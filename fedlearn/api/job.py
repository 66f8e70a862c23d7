"""A job on this machine: read it, check it, try it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fedlearn.job.spec import JobSpec

if TYPE_CHECKING:
    from fedlearn.api.validation import Report

__all__ = ["Job"]


class Job:
    """A job's file with its policy and its app. Read one with :meth:`load`.

    ``path`` is the file and ``spec`` its content; what is in the file later is not seen.
    """

    def __init__(self, path: Path, spec: JobSpec) -> None:
        self.path = path
        self.spec = spec

    def __repr__(self) -> str:
        """Return name and file."""
        return f"Job({self.name!r}, {str(self.path)!r})"

    @classmethod
    def load(cls, path: str | os.PathLike[str] = "job.toml") -> Self:
        """Read a job, its policy and the owner's key.

        :param path: the job's file, or the folder with a ``job.toml``.
        :raises ConfigError: naming file, line and key of everything that is wrong.
        """
        file = Path(path)
        if file.is_dir():
            file /= "job.toml"
        return cls(file, JobSpec.load(file))

    @property
    def name(self) -> str:
        """The job's name."""
        return self.spec.name

    def validate(self) -> Report:
        """Check the job with its policy and its app, without a coordinator.

        :returns: its facts (``found``), and what should be reviewed (``warnings``).
        :raises ConfigError: naming file, line and key of what is wrong.
        :raises JobError: when the app cannot run here.
        :raises PolicyError: when the policy is not one, or pins no launch identity of a TEE that
            it accepts.
        :raises PrivacyError: when the rounds would spend more than the privacy budget.
        """
        from fedlearn.api.validation import examine

        return examine(self.path)
