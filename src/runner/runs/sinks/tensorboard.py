"""Write rows as TensorBoard events: curves, the config as text, the table of hyperparameters, plots as images.

This is a small synchronous writer of TensorBoard's own messages. `torch.utils.tensorboard` sends each value to a thread
as an event of its own, which costs more than writing all values of a row at once, and it needs torch.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from runner.config import schema as c
from runner.config.files import MIB, open_to_read
from runner.runs.atomic import Appended, as_yaml, write_atomic
from runner.runs.directory import EVENTS
from runner.runs.records import selected_metrics
from runner.runs.sinks.base import Row
from runner.runs.sinks.crc32c import masked_crc32c

MAX_RECORD_BYTES = 64 * MIB
"""Longest record of an event file. Records are read one at a time: a file may have any number of them."""

_HPARAMS = "_hparams_/"
"""Start of the tags of the plugin for hyperparameters."""

_OF_AN_ATTEMPT = ("config", _HPARAMS, "final/", "figures/")
"""Starts of the tags that each attempt writes itself, at its start and at its end. All others are of rows."""

_SECRETS = ("token", "password", "secret")


def build(config: c.TensorBoard, directory: Path, held: bool) -> TensorBoard:
    """Return the sink of a run directory's event files."""
    return TensorBoard(directory, held=held)


class TensorBoard:
    """A sink that writes one event file for each attempt into the run directory. TensorBoard stores float32.

    A row reaches the operating system in `write`, and the disk in `flush`. With `held`, it reaches both in `flush`.
    """

    def __init__(self, directory: Path, *, held: bool = False) -> None:
        self._directory, self._held = directory, held
        self._file: Appended | None = None
        self._first_step = 0

    def open(self, first_step: int) -> None:
        """Drop events of earlier attempts: rows from `first_step` on, and what is not of rows. A file begins with `start`."""
        self._first_step = first_step
        self._earlier = sorted(self._directory.glob(EVENTS + "*"))
        starts = [_drop(file, first_step) for file in self._earlier]
        self._config_step = min([step for step in starts if step is not None], default=first_step)

    def _begin(self) -> Appended:
        """Begin the file of this attempt."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._event = Event
        file = Appended(self._directory / _file_name(self._earlier), held=self._held)
        now = time.time()
        # A server that has read the dropped rows already forgets them when it reads the second one.
        for event in (
            Event(file_version="brain.Event:2", wall_time=now),
            Event(step=self._first_step, wall_time=now, session_log=SessionLog(status=SessionLog.START)),
        ):
            file.write(_record(event.SerializeToString()))
        return file

    def start(
        self, config: Mapping[str, Any], hyperparameters: Mapping[str, float | str | bool], metric_names: Sequence[str]
    ) -> None:
        """Write the config as the text "config", and the table of hyperparameters with metrics "final/<name>"."""
        values = [_text("config", _markdown(config)), *_session_start(_masked(hyperparameters), metric_names)]
        self._put_values(self._config_step, values)

    def write(self, row: Row) -> None:
        """Write a row as one event with all its values."""
        event = self._new(int(row["step"]))
        add = event.summary.value.add
        for tag, number in row.items():
            if tag != "step":
                add(tag=tag, simple_value=number)
        self._put(event)

    def flush(self) -> None:
        """Wait until the disk has all events so far."""
        if self._file is not None:
            self._file.sync()

    def finish(self, summary: Mapping[str, Any], figures: Mapping[str, bytes]) -> None:
        """Write scalars "final/<name>" and images "figures/<name>" at the last step, and the end of the session."""
        steps, metrics = summary["steps"], selected_metrics(summary)
        if metrics:
            self.write({"step": steps, **{f"final/{name}": value for name, value in metrics.items()}})
        self._put_values(steps, [_image(f"figures/{name}", png) for name, png in figures.items()])
        self._put_values(steps, [_session_end(summary["status"] == "finished")])
        self.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._file is not None:
            self._file.close()

    def _put_values(self, step: int, values: Sequence[Any]) -> None:
        event = self._new(step)
        event.summary.value.extend(values)
        self._put(event)

    def _new(self, step: int) -> Any:
        """Return an empty event. The first one begins the file."""
        self._file = self._file or self._begin()
        return self._event(step=step, wall_time=time.time())

    def _put(self, event: Any) -> None:
        assert self._file is not None
        self._file.write(_record(event.SerializeToString()))


def _file_name(earlier: Sequence[Path]) -> str:
    """Return a name that sorts after those of earlier attempts: TensorBoard reads files in this order."""
    # The clock does not ensure it: two attempts may start in the same second, or on two machines.
    starts = (file.name.removeprefix(EVENTS).partition(".")[0] for file in earlier)
    times = [int(start) for start in starts if re.fullmatch(r"[0-9]{1,10}", start)]
    return f"{EVENTS}{max([int(time.time()), *(t + 1 for t in times)]):010d}.{socket.gethostname()}.{os.getpid()}"


def _drop(file: Path, first_step: int) -> int | None:
    """Keep the rows of an earlier attempt's file that are not written again. Return the step of the config, if it is there.

    A record that a kill cut off is dropped. A file of which nothing is kept is removed.
    """
    config_step, kept = None, 0
    for record, event in _events(file):
        if any(value.tag == "config" for value in event.summary.value):
            config_step = event.step
        if _is_kept(event, first_step):
            kept += len(record)
    if not kept:
        file.unlink()
    elif kept < file.stat().st_size:
        records = (record for record, event in _events(file) if _is_kept(event, first_step))
        # The new file does not have the name of an event file before it is complete, because TensorBoard would read it.
        write_atomic(file, records, temporary_name="events")
    return config_step


def _is_kept(event: Any, first_step: int) -> bool:
    """Return whether an event of an earlier attempt is not written again."""
    # TensorBoard uses the first session that it reads: a resumed run would stay "failed" in its table.
    return event.step < first_step and not any(value.tag.startswith(_OF_AN_ATTEMPT) for value in event.summary.value)


def _events(path: Path) -> Iterator[tuple[bytes, Any]]:
    """Yield record and event of each record of an event file, up to the first damaged one. Raises OSError."""
    from tensorboard.compat.proto.event_pb2 import Event

    with open_to_read(path) as file:
        while len(head := file.read(12)) == 12:
            (length,) = struct.unpack_from("<Q", head)
            if length > MAX_RECORD_BYTES or head != _head(length):
                return
            data, checksum = file.read(length), file.read(4)
            if checksum != struct.pack("<I", masked_crc32c(data)):
                return
            try:
                event = Event.FromString(data)
            except Exception:  # protobuf's own: the checksum is right, but it is no event
                continue
            yield head + data + checksum, event


def _record(data: bytes) -> bytes:
    """Return a record: length of the data (8 bytes), checksum of the length (4), data, checksum of the data (4)."""
    return _head(len(data)) + data + struct.pack("<I", masked_crc32c(data))


@lru_cache(maxsize=1024)
def _head(length: int) -> bytes:
    packed = struct.pack("<Q", length)
    return packed + struct.pack("<I", masked_crc32c(packed))


def _masked(value: Any) -> Any:
    """Return the value with "***" for each key whose name suggests a secret."""
    if isinstance(value, Mapping):
        return {
            key: "***" if any(word in str(key).lower() for word in _SECRETS) else _masked(inner)
            for key, inner in value.items()
        }
    return [_masked(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _markdown(config: Mapping[str, Any]) -> str:
    """Return the config as YAML in a markdown code block, made by indentation."""
    return textwrap.indent(as_yaml(_masked(config)), "    ")


def _text(tag: str, text: str) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return Summary.Value(tag=tag, metadata=metadata, tensor=TensorProto(dtype=DT_STRING, string_val=[text.encode()]))


def _image(tag: str, png: bytes) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    width, height = struct.unpack_from(">II", png, 16)  # they begin the first chunk of every PNG file
    return Summary.Value(
        tag=tag, image=Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
    )


def _session_start(hyperparameters: Mapping[str, Any], metric_names: Sequence[str]) -> list[Any]:
    """Return the columns of the table of hyperparameters, and the row of this run."""
    from tensorboard.plugins.hparams.api_pb2 import Experiment, HParamInfo, MetricInfo, MetricName
    from tensorboard.plugins.hparams.plugin_data_pb2 import SessionStartInfo

    info = SessionStartInfo(start_time_secs=time.time())
    columns = []
    for name, value in hyperparameters.items():
        kind, field = _kind(value)
        columns.append(HParamInfo(name=name, type=kind))
        setattr(info.hparams[name], field, value)
    metrics = [MetricInfo(name=MetricName(tag=f"final/{name}")) for name in metric_names]
    experiment = Experiment(hparam_infos=columns, metric_infos=metrics)
    return [_hparams("experiment", experiment), _hparams("session_start_info", info)]


def _kind(value: float | str | bool) -> tuple[Any, str]:
    """Return the type of a hyperparameter for the table, and the field of a `Value` message that holds it."""
    from tensorboard.plugins.hparams import api_pb2

    if isinstance(value, bool):  # before the numbers: a bool is an int
        return api_pb2.DATA_TYPE_BOOL, "bool_value"
    if isinstance(value, str):
        return api_pb2.DATA_TYPE_STRING, "string_value"
    return api_pb2.DATA_TYPE_FLOAT64, "number_value"


def _session_end(succeeded: bool) -> Any:
    from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
    from tensorboard.plugins.hparams.plugin_data_pb2 import SessionEndInfo

    status = STATUS_SUCCESS if succeeded else STATUS_FAILURE
    return _hparams("session_end_info", SessionEndInfo(status=status, end_time_secs=time.time()))


def _hparams(name: str, message: Any) -> Any:
    """Return a value without data: the plugin reads the message in its metadata."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = HParamsPluginData(**{name: message}).SerializeToString()
    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=content)
    return Summary.Value(tag=_HPARAMS + name, metadata=SummaryMetadata(plugin_data=plugin))
