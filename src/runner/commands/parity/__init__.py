"""`python -m runner parity …`: the same experiment in every way there is to compute it, each held against one reference.

`cells` says which ways there are, `runs` trains them, `bounds` and `rounding` say how far they may be from the reference,
`table` and `picture` tell how far they are.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from runner.commands.arguments import Parser
from runner.commands.parity.cells import Asked, ask
from runner.compute.gc_pause import gc_paused
from runner.compute.signals import interruptible
from runner.errors import ConfigError, Interrupted, RunFailed
from runner.runs.atomic import explain_os_error, write_atomic, write_json
from runner.runs.sinks.reporter import Reporter

if TYPE_CHECKING:
    from runner.commands.parity.table import Table

USAGE = """\
python -m runner parity +experiment=NAME [key=value …]     the same experiment on every device × dtype × strategy × update ×
                                                           optimizer that this machine has, each against float64 on one
                                                           process of the CPU, the update written by hand

device=, dtype=, strategy=, update= and optimizer= restrict the table to the values that are given, such as dtype=float64,float32.
launch.processes=N is for the strategies of several processes, 2 unless it is given.

options
  --steps N            steps that are compared; the experiment's own, at most 100, unless it is given
  --out DIR            where parity.md, parity.json and parity.png go, a new directory; runs/NAME/parity_<stamp> unless it is given
  --config-dir DIR     your own groups and experiments

Exit code: 0 every bound is met, 1 one is missed or a cell failed, 2 the input cannot be run.
"""


def command(words: list[str]) -> int:
    """Measure, write the table down and tell it; gives the exit code. Raises `InputError`, `RunFailed` and `Interrupted`."""
    parser = Parser("parity")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("overrides", nargs="*")
    given, rest = parser.parse_known_intermixed_args(words)
    if given.steps is not None and given.steps < 1:
        raise ConfigError(
            f"`--steps` must be an integer of at least 1, but is {given.steps}; leave it out for at most 100"
        )
    _refuse_taken(given.out)
    asked = ask([*given.overrides, *rest], given.config_dir)
    console = Reporter()
    for notice in asked.notices:
        console.warn(notice)
    table = _measured(asked, given.steps, ["python", "-m", "runner", "parity", *words], console)
    directory = Path(given.out) if given.out is not None else _place(table.name)
    write(table, directory)
    tell(table, directory, console)
    return 1 if table.bad else 0


def _refuse_taken(out: str | None) -> None:
    if out is not None and (not out or Path(out).exists()):
        raise ConfigError(f"`--out` must be a directory that does not exist yet, but is {out!r}; give another one")


def _place(name: str) -> Path:
    return Path("runs", name, f"parity_{datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(3)}")


def _measured(asked: Asked, steps: int | None, words: Sequence[str], console: Reporter) -> Table:
    with gc_paused():
        from runner.commands.parity.measure import measure
    said = "stopped; nothing was written"
    try:
        with interruptible(said), tempfile.TemporaryDirectory(prefix="parity_") as folder:
            return measure(asked, steps, words, Path(folder), console.say)
    except Interrupted as stop:
        raise Interrupted(stop.exit_code - 128, said) from None


def write(table: Table, directory: Path) -> None:
    """parity.md, parity.json and parity.png in a new directory. Raises `RunFailed` where they cannot be written."""
    from runner.commands.parity.plot import draw
    from runner.commands.parity.table import markdown

    with gc_paused():
        picture = draw(table)
    try:
        directory.mkdir(parents=True)
        write_json(directory / "parity.json", table.plain)
        write_atomic(directory / "parity.png", picture)
        write_atomic(directory / "parity.md", markdown(table).encode())
    except OSError as error:
        raise RunFailed(explain_os_error(error, Path(error.filename or directory))) from error


def tell(table: Table, directory: Path, console: Reporter) -> None:
    """What is bad first, then the grid, the reasons for its gaps, and the counts."""
    from runner.commands.parity.table import LEGEND, summary, text

    for line in [*table.complaints(), *summary(table), *text(table), LEGEND]:
        console.say(line)
    for reason, letter in table.letters.items():
        console.say(f"({letter}) {reason}")
    for reason in table.absent():
        console.say(reason)
    console.say(f"parity   {table.headline()}")
    console.say(f"written  {directory}/parity.md, parity.json, parity.png")
