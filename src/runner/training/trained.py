"""A trained model: its configuration, preprocessing and weights, read from a run directory and checked against each other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner.compute import sizes
from runner.config import compose
from runner.config.documents import read_json
from runner.config.resume import refuse_other, saved_values
from runner.config.schema import Config
from runner.data.preprocessing import Preprocessing
from runner.errors import CheckpointError, ConfigError
from runner.models.base import Model, start_model
from runner.runs import checkpoint, records, saved_state
from runner.runs.hashes import parameters_sha256
from runner.runs.records import CHECKPOINTS
from runner.training.fitted import preprocessing_of
from runner.training.given import NOTHING, Given
from runner.training.saved_model import misfits
from runner.version import __version__

STATES = ("selected", "last", "best")
"""Names of states, besides the numbers of steps."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model that is complete without its run directory."""

    source: str
    """What messages call it, such as the path of the run."""
    config: Config
    preprocessing: Preprocessing
    tensors: Mapping[str, Tensor]
    """Parameters and buffers by name, on the CPU."""
    step: int
    """Number of updates after which the model is in this state."""
    notices: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics of this state as a run has reported them; none of a state that it does not report."""
    documents: Mapping[str, dict[str, Any]] | None = None
    """Contents of the files that intervals need, by name; None where they are in the folder `source`."""
    given: Given = NOTHING
    """The module, if only Python code has it."""

    def model(self) -> Model:
        """Return the module with these weights, on the CPU and in evaluation mode.

        Raises `CheckpointError` if they are not those of the configured model.
        """
        model = start(self.config, self.preprocessing, self.source, self.given)
        problems = misfits(self.tensors, model.state_dict())
        if problems:
            raise CheckpointError(f"{self.source}: {problem}; restore it" for problem in problems)
        model.load_state_dict(dict(self.tensors))
        return model.eval()

    def parameters_sha256(self) -> str:
        """Return the SHA-256 of the parameters."""
        return parameters_sha256(dict(self.model().named_parameters()))

    def document(self, name: str, what: str) -> dict[str, Any] | None:
        """Return the content of a file that was written with the model, None without one.

        Raises `CheckpointError`, which calls the file `what`, if it cannot be read.
        """
        if self.documents is not None:
            return self.documents.get(name)
        path = Path(self.source) / name
        return read_json(path, what) if os.path.lexists(path) else None


def start(config: Config, fitted: Preprocessing, source: str, given: Given = NOTHING) -> Model:
    """Return the model of a configuration before training. Raises `CheckpointError` if it is too large for this machine.

    Raises `ConfigError` for a module that is not given, or that is another one.
    """
    if problems := list(given.problems_of_model(config.model)):
        raise ConfigError(problems)
    names, targets, cardinalities = columns = fitted.model_columns
    if problems := sizes.model_problems(config, len(names), len(targets), cardinalities):
        raise CheckpointError(f"{source}: {problem}" for problem in problems)
    return start_model(config, *columns, make=given.make(config.model))


def of_run(path: str, state: str = "selected", given: Given = NOTHING) -> Trained:
    """Return the model of a run in one of its states: the one that the run reports, "last", "best", or the number of a step.

    Raises `CheckpointError` if there is none, or if the files of the directory do not belong together.
    """
    config = compose.check(saved_values(path, "RUN"))
    folder = Path(path)
    summary = records.read_summary(folder)
    expected = summary["selected"] if summary is not None and state == "selected" else None
    wanted = expected["step"] if expected is not None else _step(folder / CHECKPOINTS, state)
    file = folder / CHECKPOINTS / f"step_{wanted}"
    found = saved_state.intact(file)
    if isinstance(found, str):
        raise CheckpointError(f"{file} cannot be used: {found}; {_remedy(folder / CHECKPOINTS)}")
    refuse_other(found, config, found["data_sha256"], file)
    metrics = {} if expected is None else expected["metrics"]
    fitted, notices = preprocessing_of(folder, config, found), tuple(_notices(folder, summary))
    trained = Trained(path, config, fitted, found["model"], wanted, notices, metrics, given=given)
    found_sha256 = trained.parameters_sha256()  # also shows that the weights fit the model
    if expected is not None and found_sha256 != expected["parameters_sha256"]:
        raise CheckpointError(
            f"{file} must have the parameters of `selected` in summary.json, but their SHA-256 is another one; restore the directory"
        )
    return trained


def _step(folder: Path, state: str) -> int:
    """Return the step of a state by its name or number."""
    if state in STATES:
        # Without a summary the run is not finished, and its last state is the one to use.
        step = checkpoint.linked_step(folder, "best" if state == "best" else "last")
        if step is None:
            raise CheckpointError(
                f"{folder} must have a checkpoint to predict from, got none; resume the run, or set checkpoint.every_steps"
                if state != "best"
                else f"{folder} has no state of a best evaluation; use --state last"
            )
        return step
    if not (state.isascii() and state.isdigit() and len(state) <= 18):
        raise CheckpointError(
            f"`--state` must be one of {', '.join(STATES[1:])} or the number of a step, got {state!r}"
        )
    return int(state)


def _remedy(folder: Path) -> str:
    """Return which states there are."""
    found = sorted(int(match[1]) for path in _entries(folder) if (match := checkpoint.STEP.fullmatch(path.name)))
    if not found:
        return "there is no other checkpoint; restore the directory"
    return f"restore it, or use --state with one of {', '.join(map(str, found[:20]))}"


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _notices(folder: Path, summary: Mapping[str, Any] | None) -> list[str]:
    """Return what the user should know of the run."""
    record = records.read_record(folder)
    notices = []
    if summary is None:
        notices.append(f"the run is not finished ({record['status']}), so its last checkpoint is used")
    return [*notices, *other_version(record.get("runner")), *other_torch(record.get("torch"))]


def other_version(made: Any) -> list[str]:
    """Return what the user should know of a model that another version of runner has trained."""
    if made == __version__:
        return []
    version = f"runner {made}" if isinstance(made, str) else "an older version of runner, which recorded no number"
    return [f"the run was made with {version}; this is {__version__}"]


def other_torch(made: Any) -> list[str]:
    """Return what the user should know of a model that another version of torch has trained."""
    if not isinstance(made, str) or made.partition("+")[0] == torch.__version__.partition("+")[0]:
        return []
    return [
        f"the run was made with torch {made} and this is {torch.__version__}: predictions may differ in their last digits"
    ]
