"""`verify`: repeat a run in new processes and check that it gives the same bits."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from runner.commands.verify.verdict import Verdict, print_line
from runner.compute.signals import interruptible
from runner.errors import ConfigError, RunFailed

USAGE = """\
python -m runner verify rerun RUN                             repeat a run: same parameters_sha256?
python -m runner verify resume +experiment=NAME [key=value …] [--times 20] [--seed 0]
                                                              kill runs at random steps and resume them: same result?
python -m runner verify world-size +experiment=NAME [key=value …] [--sizes 1,2,4]
                                                              same bits on each of these numbers of processes?
python -m runner verify sweep SWEEP [--members 3]             train members of a sweep alone: same result?

The runs are real ones, started as you would start them. They are written to a temporary folder. It is removed when the
results are the same, and kept and named when they differ.

options of resume and world-size
  --config-dir DIR     your own groups and experiments
  --times N            number of runs to kill; some before their first checkpoint, some twice in a row
  --seed N             changes the steps at which they are killed
  --sizes N,N,…        numbers of processes; strategy.reduction=exact is added unless you set it

exit code   0 same · 1 different, or a run failed · 2 the input cannot be run
"""

NAMES = ("rerun", "resume", "world-size", "sweep")


def command(arguments: list[str]) -> int:
    """Run one verification, print its verdict and return the exit code."""
    name = arguments[0] if arguments else ""
    if name not in NAMES:
        raise ConfigError(f"`verify` must be followed by one of {', '.join(NAMES)}, got {name!r}; see --help")
    verify = _verification(name)
    folder = Path(tempfile.mkdtemp(prefix="runner-verify-"))
    kept = False
    try:
        with interruptible("stopped; no verdict"):
            verdict = verify(arguments[1:], folder)
        kept = not verdict.same
        _print(verdict, folder)
    except RunFailed:  # its message names the log, which is in the folder
        kept = True
        raise
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
    return 0 if verdict.same else 1


def _verification(name: str) -> Callable[[Sequence[str], Path], Verdict]:
    from runner.commands.verify.rerun import rerun
    from runner.commands.verify.resume import resume
    from runner.commands.verify.sweep import sweep
    from runner.commands.verify.world_size import world_size

    return dict(zip(NAMES, (rerun, resume, world_size, sweep), strict=True))[name]


def _print(verdict: Verdict, folder: Path) -> None:
    from runner.commands.diverge.comparison import compare

    print_line(f"{'same' if verdict.same else 'differs'}: {verdict.sentence}")
    if verdict.differing is None:
        return
    one, other = map(str, verdict.differing)
    for line in compare(one, other).verdict():
        print_line(line)
    print_line(f"kept     {folder}")
    print_line(f"look     python -m runner diverge {one} {other}")
