"""`verify`: whether a run gives the same bits again, shown by doing it again in processes of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from runner.commands.verify.verdict import Verdict, say
from runner.compute.signals import interruptible
from runner.errors import ConfigError, RunFailed

USAGE = """\
python -m runner verify rerun RUN                             the run of a directory again: same parameters_sha256?
python -m runner verify resume +experiment=NAME [key=value …] [--times 20] [--seed 0]
                                                              killed at random steps and resumed: same as undisturbed?
python -m runner verify world-size +experiment=NAME [key=value …] [--sizes 1,2,4]
                                                              same bits on so many processes?
python -m runner verify sweep SWEEP [--members 3]             members of a sweep alone: what they were in it?

Runs are real ones, started as you would. They go to a temporary folder, which is removed when all is the same, and kept
and named when it is not.

options of resume and world-size
  --config-dir DIR     your own groups and experiments
  --times N            runs that are killed; some before their first checkpoint, some twice in a row
  --seed N             moves the steps at which they are killed
  --sizes N,N,…        numbers of processes; strategy.reduction=exact is added where it is not given

exit code   0 the same · 1 it differs, or a run failed · 2 the input cannot be run
"""

NAMES = ("rerun", "resume", "world-size", "sweep")


def command(words: list[str]) -> int:
    """Verify and tell; gives the exit code."""
    name = words[0] if words else ""
    if name not in NAMES:
        raise ConfigError(f"`verify` must be followed by one of {', '.join(NAMES)}, but is by {name!r}; see --help")
    verify = _verification(name)
    folder = Path(tempfile.mkdtemp(prefix="runner-verify-"))
    kept = False
    try:
        with interruptible("stopped; nothing was found out"):
            verdict = verify(words[1:], folder)
        kept = not verdict.same
        _tell(verdict, folder)
    except RunFailed:  # it names what is kept
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


def _tell(verdict: Verdict, folder: Path) -> None:
    from runner.commands.diverge import compare

    say(f"{'same' if verdict.same else 'differs'}: {verdict.sentence}")
    if verdict.differing is None:
        return
    one, other = map(str, verdict.differing)
    for line in compare(one, other).verdict():
        say(line)
    say(f"kept     {folder}")
    say(f"look     python -m runner diverge {one} {other}")
