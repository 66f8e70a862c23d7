"""Records runs with Weights & Biases: its service, or a folder (``WANDB_MODE=offline``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attestation.durable import write_durably
from fedlearn.tracking.tracker import RunId

__all__ = ["open_tracker"]

_STEPS: Final = "round/number"
_STEP: Final = "round/step"


def open_tracker(run: RunId, *, project: str, at: str) -> WandbRun:
    """Open the run in the project.

    :param at: the folder for the files of wandb; the current one by default. Where they are sent
        to, and whether, is what wandb's own settings state (WANDB_BASE_URL, WANDB_MODE).
    """
    return WandbRun(run, project, Path(at or "."))


class WandbRun:
    """A run of wandb, whose id is that of the run.

    The service tells which rounds it has. Offline nobody does, so that a small file next to the
    files of wandb keeps it. Nothing of this machine is recorded: no packages, no host, no usage.
    """

    def __init__(self, run: RunId, project: str, folder: Path) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(
            project=project,
            id=run.id,
            name=run.name,
            dir=str(folder),
            resume="allow",
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        self._offline = bool(self._run.offline)
        self._status = ""
        self._kept = folder / "wandb" / f"fedlearn-{run.id}.json"
        self.recorded = self._known()

    @property
    def place(self) -> str:
        """The page of the run, or the folder with its files."""
        return str(self._run.url or self._run.dir)

    def parameters(self, values: Mapping[str, str]) -> None:
        """Record parameters as the run's config."""
        self._run.config.update(dict(values), allow_val_change=True)

    def round(self, step: int, values: Mapping[str, float], unix_ms: int) -> None:
        """Record one round."""
        self._run.log({**values, _STEP: step, "_timestamp": unix_ms / 1000}, step=step)
        self.recorded = step

    def artifact(self, file: Path) -> None:
        """Upload a file as an artifact of the type ``report``."""
        self._run.log_artifact(str(file), name=f"report-{self._run.id}", type="report")

    def end(self, status: str, unix_ms: int) -> None:
        """Record the status."""
        self._run.summary["status"] = status
        self._status = status

    def close(self) -> None:
        """Hand over what was recorded, and keep how far that is."""
        self._run.finish(exit_code=int(self._status == "failed"))
        if self._offline:
            write_durably(self._kept, json.dumps({_STEP: self.recorded}).encode())

    def _known(self) -> int:
        if not self._offline:
            return int(self._run.summary.get(_STEP) or 0)
        try:
            return int(json.loads(self._kept.read_bytes())[_STEP])
        except FileNotFoundError:
            return 0
