"""`python -m runner doctor`: what this machine can do, what it cannot and why, and the command that mends it.

`probes` looks, `findings` judges. Neither torch nor numpy is imported here, so that it answers where they cannot be.
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
python -m runner doctor     what this machine can do, what it cannot and why, and the command that mends it

Each line is ok, limited (a run can be done without it) or broken (a run cannot be done).
Exit code 0 when a run can be done, 1 when something is broken.

options
  --json     one JSON object: able, findings, machine
"""


def command(words: list[str]) -> int:
    """Look at this machine and say what is found; exit code 1 where something is broken that a run needs."""
    parser = Parser("doctor")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(words)
    machine = collect()
    found = findings(machine)
    if given.json:
        told = [dataclasses.asdict(finding) for finding in found]
        sys.stdout.write(
            f"{json.dumps({'able': able(found), 'findings': told, 'machine': dataclasses.asdict(machine)})}\n"
        )
    else:
        sys.stdout.write(text(found))
    return 0 if able(found) else 1


def text(found: Sequence[Finding]) -> str:
    """Findings for people: state, subject and reason, and below each what mends it."""
    width = max(len(finding.subject) for finding in found)
    lines = []
    for finding in found:
        lines.append(f"{finding.state:<7}  {finding.subject:<{width}}  {finding.reason}")
        lines += [f"{'':<7}  {'':<{width}}  mend: {finding.remedy}"] if finding.remedy else []
    return "\n".join(lines) + "\n"
