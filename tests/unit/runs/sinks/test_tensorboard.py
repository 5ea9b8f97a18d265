import math
import os
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

from runner.runs.sinks.crc32c import masked_crc32c
from runner.runs.sinks.tensorboard import TensorBoard

CONFIG = {"name": "linreg", "train": {"steps": 100, "widths": [8, 8]}}


def png(width: int, height: int) -> bytes:
    """Return a PNG file with only the first chunk, which is all that the sink reads."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def attempt(
    directory: Path,
    first_step: int,
    stop: int,
    status: str | None = None,
    hyperparameters: Mapping[str, float | str | bool] | None = None,
) -> Path:
    """Write an attempt whose rows contain its first step; without a status it is killed. Return its event file."""
    before = set(directory.iterdir())
    sink = TensorBoard(directory)
    sink.open(first_step)
    sink.start(CONFIG, hyperparameters or {"optimizer.lr": 0.1}, ["valid/rmse"])
    for step in range(first_step, stop):
        sink.write({"step": step, "train/loss": float(first_step), "lr": 0.5})
    if status is not None:
        sink.finish({"status": status, "steps": stop, "metrics": {"valid/rmse": stop + 0.5}}, {"fit": png(3, 2)})
    sink.close()
    (file,) = set(directory.iterdir()) - before
    return file


def cut_off(file: Path, count: int = 7) -> None:
    """Remove the last bytes, as a kill during a write does."""
    file.write_bytes(file.read_bytes()[:-count])


def read(directory: Path) -> Any:
    """Return what TensorBoard reads from a run directory, with every step."""
    return EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0, "images": 0}).Reload()


def scalars(run: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in run.Scalars(tag)]


def events(file: Path) -> list[Any]:
    return [Event.FromString(record) for record in RawEventFileLoader(str(file)).Load()]


def sessions(directory: Path) -> Any:
    """Return the rows of the table of hyperparameters, from the plugin's own backend."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(directory))
    multiplexer.Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(directory))))
    statuses = [api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING]
    request = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=statuses,
        col_params=[api_pb2.ColParams(metric=api_pb2.MetricName(tag="final/valid/rmse"))],
        slice_size=10,
    )
    return Handler(RequestContext(), context, "", request).run().session_groups


def test_a_row_is_one_event_with_all_its_values(tmp_path: Path) -> None:
    file = attempt(tmp_path, 0, 3)
    assert re.fullmatch(rf"events\.out\.tfevents\.\d{{10}}\..+\.{os.getpid()}", file.name)
    assert events(file)[0].file_version == "brain.Event:2"
    rows = [event for event in events(file) if event.summary.value and event.summary.value[0].tag == "train/loss"]
    assert [event.step for event in rows] == [0, 1, 2]
    assert [[(value.tag, value.simple_value) for value in event.summary.value] for event in rows] == [
        [("train/loss", 0.0), ("lr", 0.5)]
    ] * 3
    assert read(tmp_path).Tags()["scalars"] == ["train/loss", "lr"]


def test_numbers_that_are_not_finite_are_kept(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path)
    sink.open(0)
    sink.write({"step": 1, "a": math.nan, "b": -math.inf, "c": 1e300})
    sink.close()
    run = read(tmp_path)
    assert math.isnan(scalars(run, "a")[0][1])
    assert scalars(run, "b") == [(1, -math.inf)]
    assert scalars(run, "c") == [(1, math.inf)]  # float32 ends at 3.4e38


def test_a_row_can_be_read_before_anything_is_flushed(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path)
    sink.open(0)
    sink.write({"step": 4, "x": 2.0})
    assert scalars(read(tmp_path), "x") == [(4, 2.0)]
    sink.close()


def test_flush_syncs_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    sink = TensorBoard(tmp_path)
    sink.open(0)
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    sink.write({"step": 1, "x": 1.0})
    assert synced == []
    sink.flush()
    assert synced == [file.stat().st_ino for file in tmp_path.iterdir()]
    sink.close()


@pytest.mark.parametrize("live", [False, True], ids=["read afterwards", "watched all the time"])
def test_each_step_is_there_once_after_several_resumes(tmp_path: Path, live: bool) -> None:
    cut_off(attempt(tmp_path, 0, 80))
    run = read(tmp_path)
    for first_step, stop in [(60, 95), (70, 75), (75, 76)]:
        cut_off(attempt(tmp_path, first_step, stop))
        run.Reload()
    attempt(tmp_path, 72, 100, "finished")
    run = run.Reload() if live else read(tmp_path)
    began = [0] * 60 + [60] * 10 + [70] * 2 + [72] * 28
    assert scalars(run, "train/loss") == list(enumerate(began))
    assert scalars(run, "final/valid/rmse") == [(100, 100.5)]


def test_a_restart_at_step_0_leaves_nothing_of_the_killed_attempt(tmp_path: Path) -> None:
    killed = attempt(tmp_path, 0, 10)
    attempt(tmp_path, 0, 4)
    assert not killed.exists()
    assert [step for step, _ in scalars(read(tmp_path), "lr")] == [0, 1, 2, 3]


@pytest.mark.parametrize("damage", [b"\0" * 64, b"\x07", b"\xff" * 40])
def test_records_after_a_damaged_one_are_dropped(tmp_path: Path, damage: bytes) -> None:
    file = attempt(tmp_path, 0, 10)
    whole = len(file.read_bytes())
    file.write_bytes(file.read_bytes() + damage)
    attempt(tmp_path, 10, 12)
    assert len(file.read_bytes()) < whole  # the session was removed as well
    assert [step for step, _ in scalars(read(tmp_path), "lr")] == [*range(12)]


def test_events_are_read_one_at_a_time(tmp_path: Path) -> None:
    file = attempt(tmp_path, 0, 20_000)
    size = file.stat().st_size
    tracemalloc.start()
    attempt(tmp_path, 19_990, 19_991)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size / 4
    assert [step for step, _ in scalars(read(tmp_path), "lr")] == [*range(19_991)]


def test_a_record_that_claims_to_be_enormous_is_damage(tmp_path: Path) -> None:
    file = attempt(tmp_path, 0, 10)
    length = struct.pack("<Q", 2**40)
    with file.open("ab") as end:
        end.write(length + struct.pack("<I", masked_crc32c(length)))
    os.truncate(file, 2**41)
    attempt(tmp_path, 10, 12)
    assert [step for step, _ in scalars(read(tmp_path), "lr")] == [*range(12)]


def test_the_file_of_a_later_attempt_sorts_last_for_any_clock(tmp_path: Path) -> None:
    first = attempt(tmp_path, 0, 5)
    first = first.rename(tmp_path / "events.out.tfevents.4000000000.zeta.1")
    second = attempt(tmp_path, 5, 6)
    assert second.name.startswith("events.out.tfevents.4000000001.")
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_no_second_event_file_is_visible_while_one_is_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = attempt(tmp_path, 0, 9)
    seen: list[list[str]] = []
    monkeypatch.setattr(
        os, "fsync", lambda _: seen.append([f.name for f in tmp_path.iterdir() if "tfevents" in f.name])
    )
    attempt(tmp_path, 7, 8)
    assert seen
    assert all(names == [file.name] for names in seen)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_attempt_begins_with_a_session_start_at_its_first_step(tmp_path: Path) -> None:
    attempt(tmp_path, 0, 9)
    (start,) = [event for event in events(attempt(tmp_path, 7, 8)) if event.HasField("session_log")]
    assert (start.step, start.session_log.status) == (7, SessionLog.START)


def test_the_config_is_text_without_secrets(tmp_path: Path) -> None:
    secret = {
        "Api_Token": "t0p",
        "data": [{"password": {"a": "t0p"}, "MY_SECRET_2": None}],
        "name": "münchen",
        "k": (1, 2.5),
    }
    sink = TensorBoard(tmp_path)
    sink.open(3)
    sink.start(secret, {"data.password": "t0p", "lr": 0.1}, [])
    sink.close()
    (text,) = read(tmp_path).Tensors("config")
    markdown = text.tensor_proto.string_val[0].decode()
    assert text.step == 3
    assert all(line.startswith("    ") for line in markdown.splitlines())
    stars = {"password": "***", "MY_SECRET_2": "***"}
    assert yaml.safe_load(markdown) == {"Api_Token": "***", "data": [stars], "name": "münchen", "k": [1, 2.5]}
    assert all(b"t0p" not in file.read_bytes() for file in tmp_path.iterdir())
    assert read(tmp_path).SummaryMetadata("config").plugin_data.plugin_name == "text"


def test_figures_are_images_at_the_last_step(tmp_path: Path) -> None:
    attempt(tmp_path, 0, 6, "finished")
    (image,) = read(tmp_path).Images("figures/fit")
    assert (image.step, image.width, image.height, image.encoded_image_string) == (6, 3, 2, png(3, 2))


def test_the_table_has_hyperparameters_final_metrics_and_status(tmp_path: Path) -> None:
    for name, status in [("a", "finished"), ("b", "failed"), ("c", None)]:
        (tmp_path / name).mkdir()
        attempt(tmp_path / name, 0, 5, status, {"lr": 0.1, "seed": 3, "model": "mlp", "compile": True})
    groups = sessions(tmp_path)
    assert [group.name for group in groups] == ["a", "b", "c"]
    for group in groups:
        kinds = {name: value.WhichOneof("kind") for name, value in group.hparams.items()}
        numbers = {"lr": "number_value", "seed": "number_value"}
        assert kinds == numbers | {"model": "string_value", "compile": "bool_value"}
        assert (group.hparams["lr"].number_value, group.hparams["model"].string_value) == (0.1, "mlp")
    assert [group.sessions[0].status for group in groups] == [
        api_pb2.STATUS_SUCCESS,
        api_pb2.STATUS_FAILURE,
        api_pb2.STATUS_UNKNOWN,
    ]
    assert [[(m.value, m.training_step) for m in group.metric_values] for group in groups] == [
        [(5.5, 5)],
        [(5.5, 5)],
        [],
    ]
    assert all(g.sessions[0].end_time_secs >= g.sessions[0].start_time_secs > 1e9 for g in groups[:2])


def test_a_failed_run_that_was_resumed_has_its_new_status(tmp_path: Path) -> None:
    attempt(tmp_path, 0, 50, "failed", {"train.steps": 50})
    attempt(tmp_path, 40, 60, "finished", {"train.steps": 60})
    (group,) = sessions(tmp_path)
    assert group.sessions[0].status == api_pb2.STATUS_SUCCESS
    assert group.hparams["train.steps"].number_value == 60
    assert [(metric.value, metric.training_step) for metric in group.metric_values] == [(60.5, 60)]


def test_a_sink_that_was_never_opened_can_be_closed(tmp_path: Path) -> None:
    TensorBoard(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_importing_the_sink_imports_no_heavy_package() -> None:
    script = """
import sys
import runner.runs.sinks.tensorboard
assert not [name for name in sys.modules if name.startswith(("tensorboard", "torch", "numpy", "google"))]
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_writing_imports_no_heavy_package(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from runner.runs.sinks.tensorboard import TensorBoard
sink = TensorBoard(Path(sys.argv[1]))
sink.open(0)
sink.start({"a": 1}, {"lr": 0.1}, ["valid/rmse"])
sink.close()
assert not {"torch", "tensorflow", "pandas", "matplotlib", "grpc"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=60)
