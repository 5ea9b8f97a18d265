"""`verify resume`: kill runs at random steps, resume them, and compare them with an undisturbed run."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.commands.arguments import Parser
from runner.commands.diverge.runs import read_run
from runner.commands.verify.processes import kill_at, run_to_end
from runner.commands.verify.verdict import ExperimentRequest, Verdict, print_line, read_request, short
from runner.errors import ConfigError
from runner.runs.records import CHECKPOINTS
from runner.runs.sinks.jsonl import read_rows

CHECKPOINTS_PER_RUN = 10
"""Approximate number of checkpoints of a run when the user does not set `checkpoint.every_steps`."""

MAX_ATTEMPTS = 10
"""Number of runs started for one kill. Each is killed earlier than the previous one, which had ended too soon."""


@dataclass(frozen=True)
class Kill:
    """A kill that came in time: the last step with a row, and the step of the checkpoint to resume from."""

    step: int
    saved_step: int

    def __str__(self) -> str:
        return f"killed at {self.step}, resumed from {self.saved_step}"


@dataclass(frozen=True)
class Undisturbed:
    """The run that is not killed, with which the others are compared."""

    directory: Path
    steps: int
    checkpoint_every: int


def resume(arguments: Sequence[str], folder: Path) -> Verdict:
    """Kill and resume `--times` runs and compare each with an undisturbed run."""
    parser = Parser("verify resume")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parsed, request = read_request(parser, arguments)
    if parsed.times < 1:
        raise ConfigError(f"`--times` must be at least 1, got {parsed.times}; use a larger number")
    request = request.with_added("record.every_steps=1", "record.plots=false")
    undisturbed, request = _undisturbed(request, folder)
    differing, kills = [], list[Kill]()
    for number in range(1, parsed.times + 1):
        directory = folder / f"killed_{number}"
        kills_of_run = _killed(request, undisturbed, directory, random.Random(f"{parsed.seed}/{number}"), number)
        run_to_end(request.resume_arguments(directory), directory.with_suffix(".log"))
        same = _same(undisturbed.directory, directory)
        kills += kills_of_run
        history = "; ".join(map(str, kills_of_run))
        print_line(f"{number:>4}  {short(_hash(directory))}  {'same' if same else 'differs'}  {history}")
        if same:
            shutil.rmtree(directory)
        else:
            differing.append(directory)
    if differing:
        sentence = f"{len(differing)} of {parsed.times} killed and resumed runs differ from the undisturbed run"
        return Verdict(False, sentence, (undisturbed.directory, differing[0]))
    early = sum(kill.saved_step == 0 for kill in kills)
    return Verdict(
        True,
        f"{parsed.times} of {parsed.times} killed and resumed runs have the same parameters_sha256 and the same rows: "
        f"{len(kills)} kills at steps {min(kill.step for kill in kills)} to {max(kill.step for kill in kills)}, "
        f"{early} of them before the first checkpoint",
    )


def _undisturbed(request: ExperimentRequest, folder: Path) -> tuple[Undisturbed, ExperimentRequest]:
    """Run the experiment once; also return the request with a checkpoint interval that fits its length."""
    directory = folder / "undisturbed"
    run_to_end(request.run_arguments(directory), folder / "undisturbed.log")
    steps = int(read_run(str(directory), "run_dir").summary["steps"])
    print_line(f"{'':>4}  {short(_hash(directory))}  {steps} steps, undisturbed")
    if steps < 2:
        raise ConfigError("`train.steps` must be at least 2, so that a run can be killed midway, got 1; use more steps")
    request = request.with_added(f"checkpoint.every_steps={max(1, steps // CHECKPOINTS_PER_RUN)}")
    return Undisturbed(directory, steps, request.config.checkpoint.every_steps or steps), request


def _killed(
    request: ExperimentRequest, undisturbed: Undisturbed, directory: Path, draw: random.Random, number: int
) -> list[Kill]:
    """Start a run and kill it once: every fourth run twice in a row, every fourth before its first checkpoint."""
    before = number % 4 == 1 and undisturbed.checkpoint_every > 1
    last = min(undisturbed.checkpoint_every, undisturbed.steps) - 1 if before else undisturbed.steps - 1
    shares = [draw.random() for _ in range(2 if number % 4 == 2 else 1)]
    # A run that ended before the kill is no evidence, so the next one is killed earlier.
    for attempt in range(MAX_ATTEMPTS):
        kills = list(_kills(request, directory, [share / 2**attempt for share in shares], last))
        if len(kills) == len(shares) and all(kill.step < undisturbed.steps for kill in kills):
            return kills
        shutil.rmtree(directory, ignore_errors=True)
    raise ConfigError(
        f"`train.steps` must be large enough to kill a run midway, got {undisturbed.steps}, "
        "which are done before a signal arrives; use more steps"
    )


def _kills(request: ExperimentRequest, directory: Path, shares: Sequence[float], last: int) -> Iterator[Kill]:
    """Yield the kills of one run and stop at the first that came too late.

    Each share places a kill between the step that the run starts or resumes from and step `last`.
    """
    arguments, saved_step = request.run_arguments(directory), 0
    for share in shares:
        step = min(last, saved_step + 1 + int(share * (last - saved_step)))
        if not kill_at(arguments, directory.with_suffix(".log"), directory, step):
            return
        saved_step = _saved_step(directory)
        yield Kill(_rows(directory)[-1]["step"], saved_step)
        arguments = request.resume_arguments(directory)


def _saved_step(directory: Path) -> int:
    """Return the step of the checkpoint that a resumed run starts from, or 0 if there is none."""
    link = directory / CHECKPOINTS / "last"
    match = re.fullmatch(r"step_([0-9]+)", os.readlink(link)) if link.is_symlink() else None
    return int(match[1]) if match else 0


def _hash(directory: Path) -> str:
    return str(read_run(str(directory), "run_dir").summary["parameters_sha256"])


def _selected(directory: Path) -> Any:
    return read_run(str(directory), "run_dir").summary["selected"]


def _rows(directory: Path) -> list[dict[str, Any]]:
    rows = read_rows(directory / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name != "samples_per_second"} for row in rows]


def _same(one: Path, other: Path) -> bool:
    """Whether parameters, selected state, rows and hashes are equal, with no row lost and none written twice."""
    hashes = [(run / "hashes.jsonl").read_bytes() for run in (one, other) if (run / "hashes.jsonl").exists()]
    # As text, because nan is not equal to itself.
    texts = [repr((_hash(run), _selected(run), _rows(run))) for run in (one, other)]
    return texts[0] == texts[1] and len({*hashes}) < 2
