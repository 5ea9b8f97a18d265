"""`verify world-size`: one experiment on several numbers of processes gives the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.commands.arguments import Parser
from runner.commands.diverge.runs import read
from runner.commands.verify.processes import finish
from runner.commands.verify.verdict import Verdict, experiment, say, short
from runner.config import constraints
from runner.errors import ConfigError


def world_size(words: Sequence[str], folder: Path) -> Verdict:
    """Run an experiment on every number of processes."""
    parser = Parser("verify world-size")
    parser.add_argument("--sizes", default="1,2,4")
    given, asked = experiment(parser, words, ["launch.processes", "launch.nodes", "launch.rdzv_endpoint"])
    sizes = _sizes(given.sizes)
    asked = asked.with_added("strategy.reduction=exact", "record.plots=false")
    problems = [problem for size in sizes for problem in constraints.world_size_problems(asked.config, size)]
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    found = {}
    for size in sizes:
        directory = folder / f"processes_{size}"
        finish(asked.run(directory, f"launch.processes={size}"), folder / f"processes_{size}.log")
        found[size] = str(read(str(directory), "run_dir").summary["parameters_sha256"])
        say(f"{size:>4} {'process  ' if size == 1 else 'processes'}  {short(found[size])}")
    other = next((size for size in sizes if found[size] != found[sizes[0]]), None)
    if other is None:
        return Verdict(True, f"parameters_sha256 is equal on {_listed(sizes)} processes")
    fast = asked.config.strategy.reduction == "fast"
    why = "; with strategy.reduction=fast answers are promised to agree up to rounding only" if fast else ""
    sentence = f"parameters_sha256 on {other} processes is not that on {sizes[0]}{why}"
    return Verdict(False, sentence, (folder / f"processes_{sizes[0]}", folder / f"processes_{other}"))


def _sizes(text: str) -> list[int]:
    words = text.split(",")
    sizes = [int(word) for word in words if word.isascii() and word.isdigit() and int(word) > 0]
    if len(sizes) < len(words) or len({*sizes}) < max(2, len(sizes)):
        raise ConfigError(
            f"`--sizes` must be two or more different numbers of processes, such as 1,2,4, but is {text!r}; mend it"
        )
    return sizes


def _listed(sizes: Sequence[int]) -> str:
    return f"{', '.join(map(str, sizes[:-1]))} and {sizes[-1]}"
