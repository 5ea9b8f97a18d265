"""Compare the best trial of a search on `diabetes` with the plain experiment and the closed-form line, on other seeds.

python experiments/optuna_mlp/compare.py SWEEP_DIR [--seeds 20]     seeds start at 1; the search had seed 0
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import runner
from runner.errors import RunnerError
from runner.optim.student_t import Estimate, estimate
from runner.sweep.results import Member, collect, settings

METRIC = "test/rmse"
EXPERIMENT = ("+experiment=diabetes", "train.select=last")


def best(sweep_dir: Path) -> list[str]:
    """Return the overrides of the trial with the best metric. Raises `CheckpointError`."""
    (member,) = settings(collect(sweep_dir))[0].members
    members = json.loads((sweep_dir / "sweep.json").read_text(encoding="utf-8"))["members"]
    overrides: list[str] = next(entry["overrides"] for entry in members if entry["number"] == member.number)
    return overrides


def trained(overrides: Sequence[str], seeds: int) -> Sequence[Member]:
    """Return the trials of every seed, in order. Raises `RunFailed` if a run failed."""
    directory, results = runner.multirun(None, [*overrides, "seed=1", f"seeds={seeds}"])
    failed = [member.number for member in results.members if METRIC not in member.metrics]
    if failed:
        raise runner.RunFailed(f"runs {failed} of {directory} failed, so there is nothing to compare")
    return results.members


def measured(members: Sequence[Member]) -> list[float]:
    """Return the test rmse of every seed."""
    return [member.metrics[METRIC] for member in members]


def line(members: Sequence[Member]) -> list[float]:
    """Return the test rmse of the linear fit on the same rows, for every seed."""
    return [member.baselines["linear"][METRIC] for member in members]


def main() -> int:
    """Train on all seeds, print means and paired differences, and return the exit code."""
    parser = argparse.ArgumentParser(description="Compare the best trial of a search with the experiment and the line.")
    parser.add_argument("sweep_dir", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    arguments = parser.parse_args()
    try:
        overrides = best(arguments.sweep_dir)
        experiment = trained(EXPERIMENT, arguments.seeds)
        rows = {
            "best trial": measured(trained(overrides, arguments.seeds)),
            "experiment": measured(experiment),
            "… without dropout": measured(trained([*EXPERIMENT, "model.dropout=0"], arguments.seeds)),
            "line": line(experiment),
        }
    except RunnerError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(f"best trial: {' '.join(overrides)}\n")
    for name, values in rows.items():
        others = [other for other in ("experiment", "line") if other != name]
        differences = [f"minus the {other} {_paired(values, rows[other])}" for other in others]
        sys.stdout.write("   ".join([f"{name:<18}{METRIC} {_shown(estimate(values))}", *differences]) + "\n")
    return 0


def _paired(mine: Sequence[float], others: Sequence[float]) -> str:
    """Return the mean of paired differences by seed, and how often they are below 0, as text."""
    minus = [a - b for a, b in zip(mine, others, strict=True)]
    return f"{_shown(estimate(minus))} (ahead in {sum(difference < 0 for difference in minus)} of {len(minus)})"


def _shown(result: Estimate) -> str:
    return f"{result.mean:5.2f} ± {result.high - result.mean:.2f}"


if __name__ == "__main__":
    sys.exit(main())
