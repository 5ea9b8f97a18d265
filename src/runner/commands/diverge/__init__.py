"""`diverge A B`: find the first step and the first tensor in which two runs differ."""

from __future__ import annotations

import sys

from runner.commands.arguments import Parser
from runner.commands.diverge.comparison import compare
from runner.errors import printable

USAGE = """\
python -m runner diverge A B        the first step and the first tensor in which two runs differ

A and B are run directories, or members of sweeps. The runs may be finished, running, stopped or killed. Differences of the
configuration, the data and the machine come first, then hashes.jsonl, metrics.jsonl, checkpoints and the final
parameters_sha256, each as far as both runs have it. Equal means equal bits.

To find the exact step, let both runs write hashes at every step: record.hash_every_steps=1.

exit code   0 equal as far as both were recorded · 1 different · 2 not run directories, or no step that both have recorded
"""


def command(arguments: list[str]) -> int:
    """Compare two runs, print the report and return the exit code."""
    parser = Parser("diverge")
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parsed = parser.parse_args(arguments)
    comparison = compare(parsed.a, parsed.b)
    sys.stdout.write("\n".join(map(printable, comparison.report())) + "\n")
    return 1 if comparison.differ else 0
