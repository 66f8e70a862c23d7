"""Records runs as event files, which TensorBoard shows: ``tensorboard --logdir DIR``."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fedlearn.tracking.tracker import RunId

__all__ = ["open_tracker"]

_STEPS: Final = "round/number"
_DEFAULT: Final = "tensorboard"


def open_tracker(run: RunId, *, project: str, at: str) -> TensorboardRun:
    """Open the run in the folder ``AT/PROJECT/NAME-ID``.

    :param at: the folder that TensorBoard is pointed at; ``tensorboard`` by default.
    """
    folder = Path(at or _DEFAULT) / project / f"{run.name}-{run.id[:8]}"
    return TensorboardRun(folder, run)


class TensorboardRun:
    """A folder with event files. Recording again adds one more file, with the rounds since."""

    def __init__(self, folder: Path, run: RunId) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._folder = folder
        self._started = run.started_unix_ms / 1000
        self.recorded = 0
        self._has_parameters = False
        if folder.is_dir():
            known = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
            tags = known.Tags()
            if _STEPS in tags["scalars"]:
                self.recorded = max(each.step for each in known.Scalars(_STEPS))
            self._has_parameters = "parameters/text_summary" in tags["tensors"]
        self._writer: Any = EventFileWriter(str(folder))

    @property
    def place(self) -> str:
        """The folder."""
        return str(self._folder)

    def parameters(self, values: Mapping[str, str]) -> None:
        """Record parameters as a table of text, once."""
        if self._has_parameters or not values:
            return
        rows = [f"|{_cell(name)}|{_cell(value)}|" for name, value in values.items()]
        text = "\n".join(("|parameter|value|", "|---|---|", *rows))
        self._write(_text("parameters", text), step=0, seconds=self._started)

    def round(self, step: int, values: Mapping[str, float], unix_ms: int) -> None:
        """Record one round."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        listed = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Summary(value=listed), step=step, seconds=unix_ms / 1000)
        self._writer.flush()
        self.recorded = step

    def artifact(self, file: Path) -> None:
        """Put a file next to the event files; TensorBoard itself does not show it."""
        shutil.copyfile(file, self._folder / file.name)

    def end(self, status: str, unix_ms: int) -> None:
        """Record the status as text."""
        self._write(_text("status", status), step=self.recorded, seconds=unix_ms / 1000)

    def close(self) -> None:
        """Write what is not written yet."""
        self._writer.close()

    def _write(self, summary: Any, *, step: int, seconds: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(wall_time=seconds, step=step, summary=summary))


def _text(name: str, markdown: str) -> Any:
    """Return a summary of TensorBoard's text plugin, whose own function needs TensorFlow."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype=DT_STRING, string_val=[markdown.encode()], tensor_shape=shape)
    plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    value = Summary.Value(tag=f"{name}/text_summary", metadata=plugin, tensor=tensor)
    return Summary(value=[value])


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
