"""The best trial of a search on `diabetes` against the experiment as it is and the closed-form line, on other seeds.

python experiments/optuna_mlp/compare.py SWEEP_DIR [--seeds 20]     seeds from 1 on; the search had seed 0
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import runner
from runner.errors import RunnerError
from runner.optim.student_t import Estimate, estimate
from runner.sweep.results import collect, settings

METRIC = "test/rmse"
BASELINE = Path(__file__).parents[1] / "diabetes" / "baseline.py"


def best(sweep_dir: Path) -> list[str]:
    """The words of the trial with the best metric of the search. Raises `CheckpointError`."""
    (member,) = settings(collect(sweep_dir))[0].members
    members = json.loads((sweep_dir / "sweep.json").read_text(encoding="utf-8"))["members"]
    words: list[str] = next(entry["overrides"] for entry in members if entry["number"] == member.number)
    return words


def measured(words: Sequence[str], seeds: int) -> list[float]:
    """The test rmse for every seed, in their order. Raises `RunFailed` where a run failed."""
    directory, results = runner.multirun(None, [*words, "seed=1", f"seeds={seeds}"])
    failed = [member.number for member in results.members if METRIC not in member.metrics]
    if failed:
        raise runner.RunFailed(f"runs {failed} of {directory} failed, so that there is nothing to compare")
    return [member.metrics[METRIC] for member in results.members]


def line(seeds: int) -> list[float]:
    """The same of the linear fit on the same rows."""
    fit = runpy.run_path(str(BASELINE))["fit"]
    return [fit([f"seed={seed}"])["test"]["rmse"] for seed in range(1, 1 + seeds)]


def main() -> int:
    """Train both on all seeds, and print means and paired differences."""
    parser = argparse.ArgumentParser(description="The best trial of a search against the experiment and the line.")
    parser.add_argument("sweep_dir", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    given = parser.parse_args()
    try:
        words = best(given.sweep_dir)
        rows = {
            "best trial": measured(words, given.seeds),
            "experiment": measured(["+experiment=diabetes"], given.seeds),
            "… without dropout": measured(["+experiment=diabetes", "model.dropout=0"], given.seeds),
            "line": line(given.seeds),
        }
    except RunnerError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(f"best trial: {' '.join(words)}\n")
    for name, values in rows.items():
        others = [other for other in ("experiment", "line") if other != name]
        differences = [f"minus the {other} {_paired(values, rows[other])}" for other in others]
        sys.stdout.write("   ".join([f"{name:<18}{METRIC} {_told(estimate(values))}", *differences]) + "\n")
    return 0


def _paired(mine: Sequence[float], others: Sequence[float]) -> str:
    """The mean difference seed by seed, and how often it is below 0."""
    minus = [a - b for a, b in zip(mine, others, strict=True)]
    return f"{_told(estimate(minus))} (ahead in {sum(difference < 0 for difference in minus)} of {len(minus)})"


def _told(found: Estimate) -> str:
    return f"{found.mean:5.2f} ± {found.high - found.mean:.2f}"


if __name__ == "__main__":
    sys.exit(main())
