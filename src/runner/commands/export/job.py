"""The work of `export`: a model into files beside their place, their comparison with the run, and then their names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.commands.export.comparison import Comparison, Computed, first_rows, made_rows, predictions, table_rows
from runner.commands.new_rows import introduction
from runner.commands.result_file import explained
from runner.config.files import kind_of
from runner.errors import ConfigError, DataError, RunFailed
from runner.runs.atomic import sync_folder, temporary, write_atomic
from runner.sweep.trained import open_models
from runner.training import exported
from runner.training.bands import Bands
from runner.training.intervals import Intervals
from runner.training.predicting import Predictor

TOLERANCE = {"float64": 1e-12, "float32": 1e-6}
"""Largest difference between predictions of a run and of its model in ONNX, relative to the largest one."""

_MOST_ONNX_BYTES = 2**31 - 2**24
"""Largest weights in a file of ONNX, which has less than 2 GiB."""


def export(options: Any) -> Iterator[str]:
    """Write the export that the options ask for, and yield the lines that say what was done. Raises `InputError` and `RunFailed`."""
    write, refuse = (_onnx, _refuse_onnx) if options.format == "onnx" else (_safetensors, _refuse_safetensors)
    path = Path(options.output)
    problems = [f"`--output` must be {text}" for text, wrong in refuse(path, options.force).items() if wrong][:1]
    if options.interval is not None and options.format == "safetensors":
        problems.append(
            "`--interval` must not be given with --format safetensors, whose folder has what intervals of every level need; remove it"
        )
    if problems:
        raise ConfigError(problems)
    predictor = Predictor(open_models(options.run, options.state))
    intervals = None if options.interval is None else predictor.intervals(options.interval, "--interval")
    yield from introduction(predictor)
    with explained(options.output):
        yield from write(predictor, path, intervals)


# ---------------------------------------------------------------------------------------------------------- safetensors


def _refuse_safetensors(path: Path, force: bool) -> dict[str, bool]:
    """Return what the folder must be, and whether it is not."""
    is_export = kind_of(path) == "a folder" and {entry.name for entry in path.iterdir()} <= exported.FILES
    return {
        **_no_place(path),
        f"a new folder or an earlier export, got {str(path)!r}, which is something else; name another one": os.path.lexists(path)
        and not is_export,
        f"a new folder, got {str(path)!r}, which exists; add --force to replace it": is_export and not force,
    }  # fmt: skip


def _safetensors(predictor: Predictor, path: Path, intervals: Intervals | Bands | None) -> Iterator[str]:
    if len(predictor.members) > 1:
        raise ConfigError(
            f"`--format safetensors` must be of one model, got the {len(predictor.members)} seeds of a sweep; give one of them, such "
            f"as {predictor.members[0].source}, or use --format onnx for their mean"
        )
    fresh = temporary(path)
    with _removed_unless_finished(fresh):
        fresh.mkdir()
        exported.write(fresh, predictor.members[0])
        again = Predictor([exported.read(str(fresh))])
        yield from _compared(predictor, predictions(again), 0.0, "this installation", intervals=None)
        yield from _left_out(predictor.members[0].source, fresh)
        _move(fresh, path)
    sizes = {file.name: file.stat().st_size for file in sorted(path.iterdir())}
    yield f"written  {path}, {_sized(sum(sizes.values()))} in {', '.join(sizes)}"


def _left_out(source: str, fresh: Path) -> Iterator[str]:
    for name in sorted(exported.FILES):
        if os.path.lexists(Path(source) / name) and not (fresh / name).exists():
            yield f"note: {name} is left out, because it is of the state that the run reports; the export has no intervals by it"


@contextmanager
def _removed_unless_finished(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _move(fresh: Path, path: Path) -> None:
    """Give a folder its name, and remove an earlier export of that name. Raises OSError, and the earlier one then is where it was."""
    earlier = temporary(path)
    if path.exists():
        path.rename(earlier)
    try:
        fresh.rename(path)
    except BaseException:
        if earlier.exists():
            earlier.rename(path)
        raise
    sync_folder(path.parent)
    shutil.rmtree(earlier, ignore_errors=True)


# ----------------------------------------------------------------------------------------------------------------- ONNX


def _refuse_onnx(path: Path, force: bool) -> dict[str, bool]:
    """Return what the file must be, and whether it is not."""
    return {
        f"a file with the ending .onnx, got {str(path)!r}; name it so": path.suffix != ".onnx",
        **_no_place(path),
        f"a file, got {str(path)!r}, which is {kind_of(path)}; name another one": kind_of(path) is not None,
        f"a new file, got {str(path)!r}, which exists; add --force to replace it": path.exists() and not force,
    }


def _onnx(predictor: Predictor, path: Path, intervals: Intervals | Bands | None) -> Iterator[str]:
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise ConfigError(
            '`--format onnx` needs onnx, which is not installed; pip install "runner[export]", or use --format safetensors'
        ) from None
    from runner.commands.export import onnx_model, runtimes

    size = sum(tensor.nbytes for member in predictor.members for tensor in member.tensors.values())
    if size > _MOST_ONNX_BYTES:
        raise ConfigError(
            f"`--format onnx` must have less than 2 GiB of weights, got {_sized(size)}; use --format safetensors"
        )
    content: bytes = onnx_model.build(predictor.members, intervals).SerializeToString()
    runtime = runtimes.load(content, onnx_model.output_names(predictor.preprocessing, intervals))
    # In what torch exports of a module of the user's own, numbers such as the eps of a normalisation are float32.
    digits = predictor.config.dtype if predictor.config.model.code is None else "float32"
    yield from _compared(predictor, runtime, TOLERANCE[digits], runtime.name, few=runtime.slow, intervals=intervals)
    write_atomic(path, content)
    yield f"written  {path}, {_sized(len(content))}"
    if intervals is not None:
        yield f"interval {intervals.level:g}, by {intervals.basis}"


# ------------------------------------------------------------------------------------------------------------ both forms


def _no_place(path: Path) -> dict[str, bool]:
    parent = str(path.parent)
    return {f"in a folder that exists, got {str(path)!r}; make {parent!r} first": not path.parent.is_dir()}


def _compared(
    predictor: Predictor,
    computed: Computed,
    tolerance: float,
    by: str,
    *,
    few: bool = False,
    intervals: Intervals | Bands | None,
) -> Iterator[str]:
    """Compare an export with the run, and yield the line that says so. Raises `RunFailed` if it predicts something else."""
    made, table = Comparison(predictor, computed, intervals), Comparison(predictor, computed, intervals)
    rows = made_rows(predictor.preprocessing)
    made.add(rows)
    made.add(first_rows(rows, 1))
    try:
        for columns in table_rows(predictor.config, predictor.preprocessing):
            table.add(first_rows(columns, _FEW_ROWS) if few else columns)
            if few:
                break
    except DataError as error:
        yield f"note: the table of the run is not compared: {error.problems[0]}"
    difference = max(made.difference, table.difference)
    if not difference <= tolerance:
        raise RunFailed(
            f"nothing was written: the predictions of {by} differ from those of the run by {difference:.2g} of the largest one, more "
            f"than {tolerance:g}; " + _REMEDY[tolerance > 0]
        )
    of_table = f"{table.rows:,} rows of its table and " if table.rows else ""
    result = (
        f"the largest difference from the run is {difference:.2g} of the largest prediction (at most {tolerance:g})"
        if tolerance
        else "the same bits as the run"
    )
    yield f"compared {of_table}{made.rows:,} made rows by {by}: {result}"


_FEW_ROWS = 1000
"""Rows of a table that are compared by a slow runtime."""

_REMEDY = {
    True: "use --format safetensors, or standardize the data or repeat the run in float64",
    False: "report this as a fault of runner",
}


def _sized(count: int) -> str:
    return f"{count / 2**10:,.1f} KiB"
