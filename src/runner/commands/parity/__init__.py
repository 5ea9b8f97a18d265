"""`python -m runner parity …`: compute the same experiment in every available way and compare each with one reference.

`cells` lists the ways, `runs` trains them, `bounds` and `rounding` derive how far they may be from the reference, `table`
and `plot` show how far they are.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from runner.commands.arguments import Parser
from runner.commands.parity.cells import ParityRequest, read_request
from runner.commands.parity.report import print_table, write_table
from runner.compute.gc_pause import gc_paused
from runner.compute.signals import interruptible
from runner.errors import ConfigError, Interrupted
from runner.runs.sinks.reporter import Reporter

if TYPE_CHECKING:
    from runner.commands.parity.table import ParityTable

USAGE = """\
python -m runner parity +experiment=NAME [key=value …]     the same experiment on every device × dtype × strategy × update ×
                                                           optimizer that this machine has, each compared with float64 on
                                                           one process of the CPU with the manual update

device=, dtype=, strategy=, update= and optimizer= restrict the table to the given values, such as dtype=float64,float32.
launch.processes=N sets the number of processes for the strategies that use several; the default is 2.

options
  --steps N            number of steps to compare; by default those of the experiment, at most 100
  --out DIR            new directory for parity.md, parity.json and parity.png; by default runs/NAME/parity_<stamp>
  --config-dir DIR     your own groups and experiments

Exit code: 0 every bound is met, 1 a bound is missed or a cell failed, 2 the input cannot be run.
"""


def command(arguments: list[str]) -> int:
    """Measure, write and print the table; return the exit code. Raises `InputError`, `RunFailed` and `Interrupted`."""
    parser = Parser("parity")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out")
    parser.add_argument("overrides", nargs="*")
    parsed, rest = parser.parse_known_intermixed_args(arguments)
    if parsed.steps is not None and parsed.steps < 1:
        raise ConfigError(
            f"`--steps` must be an integer of at least 1, got {parsed.steps}; leave it out for at most 100"
        )
    _refuse_existing(parsed.out)
    request = read_request([*parsed.overrides, *rest], parsed.config_dir)
    console = Reporter()
    for notice in request.notices:
        console.warn(notice)
    table = _measured(request, parsed.steps, ["python", "-m", "runner", "parity", *arguments], console)
    directory = Path(parsed.out) if parsed.out is not None else _default_directory(table.name)
    write_table(table, directory)
    print_table(table, directory, console)
    return 1 if table.bad else 0


def _refuse_existing(out: str | None) -> None:
    """Raise `ConfigError` for a directory that exists or cannot be made: it is written after minutes of training."""
    if out is None:
        return
    reason = ""
    try:
        os.lstat(out or ".")
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = f" ({error.strerror if isinstance(error, OSError) else error})"
    raise ConfigError(f"`--out` must be a directory that does not exist yet, got {out!r}{reason}; use another one")


def _default_directory(name: str) -> Path:
    return Path("runs", name, f"parity_{datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(3)}")


def _measured(request: ParityRequest, steps: int | None, command_line: Sequence[str], console: Reporter) -> ParityTable:
    with gc_paused():
        from runner.commands.parity.measure import measure
    message = "stopped; nothing was written"
    try:
        with interruptible(message), tempfile.TemporaryDirectory(prefix="parity_") as folder:
            return measure(request, steps, command_line, Path(folder), console.say)
    except Interrupted as stop:
        raise Interrupted(stop.exit_code - 128, message) from None
