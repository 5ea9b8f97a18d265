"""`python -m runner explain …`: where each value of a configuration was set, and its meaning.

torch is imported only to find out what a model of the user's own does.
"""

from __future__ import annotations

import json
import sys

from runner.commands.arguments import Parser
from runner.commands.explain.explanation import explain
from runner.commands.explain.output import plain, text
from runner.errors import ConfigError

USAGE = """\
python -m runner explain +experiment=NAME [key=value …] [KEY …]     every value of this run: where it was set, its meaning
python -m runner explain resume=RUN_DIR [key=value …] [KEY …]       the same for a run that is resumed
python -m runner explain rerun RUN_DIR [key=value …] [KEY …]        the same for a run that is repeated

Nothing is run, except that a model of your own, if it is trusted, predicts a few rows: a note says what a run will find out about it.
KEY, such as optimizer or data.noise, shows only that group or key.

options
  --config-dir DIR     your own groups and experiments
  --json               one JSON object: choices, values, notices, remarks
"""


def command(arguments: list[str]) -> int:
    """Explain the configuration that the arguments request and return 0. Raises the errors that a run would raise."""
    parser = Parser("explain")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("requested", nargs="*")
    parsed, rest = parser.parse_known_intermixed_args(arguments)
    requested, base = parsed.requested + rest, None
    if requested[:1] == ["rerun"]:
        if len(requested) < 2:
            raise ConfigError("`rerun` must be followed by a run directory, got nothing; write rerun RUN_DIR")
        _, base, *requested = requested
    overrides = [argument for argument in requested if "=" in argument or argument.startswith(("-", "~"))]
    names = [argument for argument in requested if argument not in overrides]
    explanation = explain(overrides, parsed.config_dir, base, names)
    sys.stdout.write(f"{json.dumps(plain(explanation), ensure_ascii=False)}\n" if parsed.json else text(explanation))
    return 0
