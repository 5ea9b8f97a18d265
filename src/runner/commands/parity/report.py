"""Files and console output of a parity table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runner.compute.gc_pause import gc_paused
from runner.errors import RunFailed
from runner.runs.atomic import explain_os_error, write_atomic, write_json
from runner.runs.sinks.reporter import Reporter

if TYPE_CHECKING:
    from runner.commands.parity.table import ParityTable


def write_table(table: ParityTable, directory: Path) -> None:
    """Write parity.md, parity.json and parity.png to a new directory. Raises `RunFailed` if that fails."""
    from runner.commands.parity.plot import draw
    from runner.commands.parity.table import markdown

    with gc_paused():
        plot = draw(table)
    try:
        directory.mkdir(parents=True)
        write_json(directory / "parity.json", table.plain)
        write_atomic(directory / "parity.png", plot)
        write_atomic(directory / "parity.md", markdown(table).encode())
    except OSError as error:
        raise RunFailed(explain_os_error(error, Path(error.filename or directory))) from error


def print_table(table: ParityTable, directory: Path, console: Reporter) -> None:
    """Print missed bounds and failures first, then the grid, the reasons for its gaps, and the counts."""
    from runner.commands.parity.table import LEGEND, summary, text

    for line in [*table.complaints(), *summary(table), *text(table), LEGEND]:
        console.say(line)
    for reason, letter in table.letters.items():
        console.say(f"({letter}) {reason}")
    for reason in table.absent():
        console.say(reason)
    console.say(f"parity   {table.headline()}")
    console.say(f"written  {directory}/parity.md, parity.json, parity.png")
