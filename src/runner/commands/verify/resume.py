"""`verify resume`: a run that is killed at random steps, and goes on, ends with the bits of one that was never stopped."""

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
from runner.commands.diverge.runs import read
from runner.commands.verify.processes import finish, kill_at
from runner.commands.verify.verdict import Experiment, Verdict, experiment, say, short
from runner.errors import ConfigError
from runner.runs.sinks.jsonl import read_rows
from runner.training.recorder import CHECKPOINTS

CHECKPOINTS_A_RUN = 10
"""Checkpoints of a run whose user does not say how many."""

MOST_TRIES = 10
"""Runs that are started for one kill, each to be killed earlier than the one before, which had ended too soon."""


@dataclass(frozen=True)
class Kill:
    """A kill that came in time: the last step of which there was a row, and the one that the run goes on from."""

    step: int
    saved_step: int

    def __str__(self) -> str:
        return f"killed at {self.step}, on from {self.saved_step}"


@dataclass(frozen=True)
class Undisturbed:
    """The run that nothing happens to."""

    directory: Path
    steps: int
    checkpoint_every: int


def resume(words: Sequence[str], folder: Path) -> Verdict:
    """Kill a run and go on with it, as often as is asked for."""
    parser = Parser("verify resume")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given, asked = experiment(parser, words)
    if given.times < 1:
        raise ConfigError(f"`--times` must be at least 1, but is {given.times}; give another number")
    asked = asked.with_added("record.every_steps=1", "record.plots=false")
    whole, asked = _undisturbed(asked, folder)
    differing, kills = [], list[Kill]()
    for number in range(1, given.times + 1):
        directory = folder / f"killed_{number}"
        done = _killed(asked, whole, directory, random.Random(f"{given.seed}/{number}"), number)
        finish(asked.resumed(directory), directory.with_suffix(".log"))
        same = _same(whole.directory, directory)
        kills += done
        told = "; ".join(map(str, done))
        say(f"{number:>4}  {short(_hash(directory))}  {'same' if same else 'differs'}  {told}")
        if same:
            shutil.rmtree(directory)
        else:
            differing.append(directory)
    if differing:
        sentence = f"{len(differing)} of {given.times} runs that were killed do not end as the one that was not"
        return Verdict(False, sentence, (whole.directory, differing[0]))
    early = sum(kill.saved_step == 0 for kill in kills)
    return Verdict(
        True,
        f"{given.times} of {given.times} runs that were killed end with the same parameters_sha256 and the same rows: "
        f"{len(kills)} kills at steps {min(kill.step for kill in kills)} to {max(kill.step for kill in kills)}, "
        f"{early} of them before the first checkpoint",
    )


def _undisturbed(asked: Experiment, folder: Path) -> tuple[Undisturbed, Experiment]:
    """That run, done; and the experiment with checkpoints that fit its length."""
    directory = folder / "undisturbed"
    finish(asked.run(directory), folder / "undisturbed.log")
    steps = int(read(str(directory), "run_dir").summary["steps"])
    say(f"{'':>4}  {short(_hash(directory))}  {steps} steps, undisturbed")
    if steps < 2:
        raise ConfigError(
            "`train.steps` must be at least 2, so that a run can be killed on the way, but is 1; make it larger"
        )
    asked = asked.with_added(f"checkpoint.every_steps={max(1, steps // CHECKPOINTS_A_RUN)}")
    return Undisturbed(directory, steps, asked.config.checkpoint.every_steps or steps), asked


def _killed(asked: Experiment, whole: Undisturbed, directory: Path, draw: random.Random, number: int) -> list[Kill]:
    """Kill a new run once, every fourth twice in a row, every fourth before its first checkpoint.

    One that had ended before it could be killed is no evidence: the next one is killed earlier.
    """
    before = number % 4 == 1 and whole.checkpoint_every > 1
    last = min(whole.checkpoint_every, whole.steps) - 1 if before else whole.steps - 1
    shares = [draw.random() for _ in range(2 if number % 4 == 2 else 1)]
    for tried in range(MOST_TRIES):
        kills = list(_kills(asked, directory, [share / 2**tried for share in shares], last))
        if len(kills) == len(shares) and all(kill.step < whole.steps for kill in kills):
            return kills
        shutil.rmtree(directory, ignore_errors=True)
    raise ConfigError(
        f"`train.steps` must be large enough for the run to be killed on its way, but all {whole.steps} steps are done before "
        "a signal arrives; make it larger"
    )


def _kills(asked: Experiment, directory: Path, shares: Sequence[float], last: int) -> Iterator[Kill]:
    """The kills of one run at these shares of the way from where it begins to step `last`; nothing from where one came too late."""
    words, saved_step = asked.run(directory), 0
    for share in shares:
        step = min(last, saved_step + 1 + int(share * (last - saved_step)))
        if not kill_at(words, directory.with_suffix(".log"), directory, step):
            return
        saved_step = _saved_step(directory)
        yield Kill(_rows(directory)[-1]["step"], saved_step)
        words = asked.resumed(directory)


def _saved_step(directory: Path) -> int:
    """The step of the checkpoint that a run goes on from; 0 where there is none."""
    link = directory / CHECKPOINTS / "last"
    match = re.fullmatch(r"step_([0-9]+)", os.readlink(link)) if link.is_symlink() else None
    return int(match[1]) if match else 0


def _hash(directory: Path) -> str:
    return str(read(str(directory), "run_dir").summary["parameters_sha256"])


def _rows(directory: Path) -> list[dict[str, Any]]:
    rows = read_rows(directory / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name != "samples_per_second"} for row in rows]


def _same(one: Path, other: Path) -> bool:
    """Whether parameters, rows and hashes are equal, none lost and none written twice."""
    hashes = [(run / "hashes.jsonl").read_bytes() for run in (one, other) if (run / "hashes.jsonl").exists()]
    # As text: nan is not equal to itself.
    return _hash(one) == _hash(other) and repr(_rows(one)) == repr(_rows(other)) and len({*hashes}) < 2
