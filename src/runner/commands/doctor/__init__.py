"""`python -m runner doctor`: what works on this machine, what does not and why, and the command that fixes it.

`probes` records the machine and `findings` judges the record. Neither imports torch or numpy, so that the command also
works where they cannot be imported.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence

from runner.commands.arguments import Parser
from runner.commands.doctor.finding import Finding, able
from runner.commands.doctor.findings import findings
from runner.commands.doctor.probes import collect

USAGE = """\
python -m runner doctor     what works on this machine, what does not and why, and the command that fixes it

Each line is ok, limited (runs are possible without it) or broken (no run is possible).
Exit code 0 if a run is possible, 1 if something is broken.

options
  --json     one JSON object: able, findings, machine
"""


def command(arguments: list[str]) -> int:
    """Examine this machine and print the findings; return 1 if something that a run needs is broken."""
    parser = Parser("doctor")
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args(arguments)
    machine = collect()
    results = findings(machine)
    if parsed.json:
        report = {
            "able": able(results),
            "findings": [dataclasses.asdict(finding) for finding in results],
            "machine": dataclasses.asdict(machine),
        }
        sys.stdout.write(f"{json.dumps(report)}\n")
    else:
        sys.stdout.write(text(results))
    return 0 if able(results) else 1


def text(results: Sequence[Finding]) -> str:
    """Return the findings as text: state, subject and reason, each followed by its remedy."""
    width = max(len(finding.subject) for finding in results)
    lines = []
    for finding in results:
        lines.append(f"{finding.state:<7}  {finding.subject:<{width}}  {finding.reason}")
        lines += [f"{'':<7}  {'':<{width}}  fix: {finding.remedy}"] if finding.remedy else []
    return "\n".join(lines) + "\n"
