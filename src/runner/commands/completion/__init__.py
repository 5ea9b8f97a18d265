"""`python -m runner completion …`: what the Tab key offers in a shell. torch and Hydra are not imported, so that it answers at once."""

from __future__ import annotations

import sys

from runner.commands.arguments import Parser, print_lines
from runner.commands.completion.candidates import candidates
from runner.commands.completion.scripts import SCRIPTS

USAGE = """\
python -m runner completion bash     a script for bash; put  eval "$(runner completion bash)"  into ~/.bashrc
python -m runner completion zsh      a script for zsh; put  eval "$(runner completion zsh)"  into ~/.zshrc, after compinit
python -m runner completion fish     a script for fish; put  runner completion fish | source  into ~/.config/fish/config.fish

Then Tab completes verbs and options, groups, keys, and values that can be listed, for `runner` and for `python -m runner`.
"""


def command(arguments: list[str]) -> int:
    """Print the script of a shell, or what may follow a line of a shell, and return 0. Raises `ConfigError`."""
    if arguments[:1] == ["candidates"]:  # asked for by the scripts: candidates LINE
        print_lines(candidates("".join(arguments[1:2])))
        return 0
    parser = Parser("completion")
    parser.add_argument("shell", choices=SCRIPTS)
    sys.stdout.write(SCRIPTS[parser.parse_args(arguments).shell])
    return 0
