"""One process of the group that computes the cells of several processes: `python -m runner.commands.parity PLAN`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from runner.commands.parity.runs import run_plan
from runner.errors import RunnerError


def main() -> int:
    """Do the runs of the plan and return the exit code."""
    try:
        run_plan(Path(sys.argv[1]), int(os.environ["RANK"]))
    except Exception as error:  # the table reports it
        return error.exit_code if isinstance(error, RunnerError) else 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # As in the command line: the gloo threads of torch 2.13 sometimes abort a process that has finished its work.
    os._exit(code)
