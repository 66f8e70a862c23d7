"""What was submitted as a run, and a folder with it that can be edited and submitted again."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from attestation.config import dumps
from attestation.durable import rename_durably
from fedlearn.app.install import unpack
from fedlearn.errors import ConfigError
from fedlearn.job.run import RunName
from fedlearn.job.spec import JobSpec

__all__ = ["Submission", "write_clone"]

_APP = "app"
_POLICY = "policy.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What was submitted as a run: ``spec`` names the run, ``bundle`` is its Flower app."""

    spec: JobSpec
    bundle: bytes = field(repr=False)
    policy_toml: str = field(repr=False)
    policy_signature: bytes = field(default=b"", repr=False)


def write_clone(submission: Submission, folder: Path) -> tuple[Path, ...]:
    """Write ``job.toml``, ``policy.toml`` and the folder ``app`` to a new folder, atomically.

    The job has the name that was submitted, without the number of its run. Comments of the
    submitted file are not there, defaults are written out, and where the coordinator chose the
    sites, the job names those. A signature of the policy is written beside it.

    :returns: the paths of what was written.
    :raises ConfigError: when ``folder`` exists and is not an empty directory.
    :raises JobError: when the app's bundle may not be unpacked here.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigError("exists and is not a directory", where=str(folder))
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError("is not empty", where=str(folder), hint="name a new directory with --out")
    run = RunName.of_id(submission.spec.name)
    job = dataclasses.replace(
        submission.spec.as_run(RunName(run.name)), app=_APP, policy=_POLICY
    ).to_table()
    # The digest of a policy that is to be edited would have to be edited too.
    del job["policy_digest"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        text = f"# Run {run.number} of {run.name}, as it was submitted.\n\n{dumps(job)}"
        (scratch / "job.toml").write_text(text, encoding="utf-8")
        (scratch / _POLICY).write_text(submission.policy_toml, encoding="utf-8")
        names = ["job.toml", _POLICY]
        if submission.policy_signature:
            names.append(f"{_POLICY}.sig")
            (scratch / names[-1]).write_bytes(submission.policy_signature)
        unpack(submission.bundle, scratch / _APP)
        if folder.is_dir():
            folder.rmdir()
        rename_durably(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return tuple(folder / name for name in (*names, _APP))
