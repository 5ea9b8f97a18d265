"""`verify world-size`: run one experiment on several numbers of processes and compare the bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.commands.arguments import Parser
from runner.commands.diverge.runs import read_run
from runner.commands.verify.processes import run_to_end
from runner.commands.verify.verdict import Verdict, print_line, read_request, short
from runner.config import constraints
from runner.errors import ConfigError


def world_size(arguments: Sequence[str], folder: Path) -> Verdict:
    """Run an experiment on each number of processes and compare `parameters_sha256`."""
    parser = Parser("verify world-size")
    parser.add_argument("--sizes", default="1,2,4")
    parsed, request = read_request(parser, arguments, ["launch.processes", "launch.nodes", "launch.rdzv_endpoint"])
    sizes = _sizes(parsed.sizes)
    request = request.with_added("strategy.reduction=exact", "record.plots=false")
    problems = [problem for size in sizes for problem in constraints.world_size_problems(request.config, size)]
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    hashes = {}
    for size in sizes:
        directory = folder / f"processes_{size}"
        run_to_end(request.run_arguments(directory, f"launch.processes={size}"), folder / f"processes_{size}.log")
        hashes[size] = str(read_run(str(directory), "run_dir").summary["parameters_sha256"])
        print_line(f"{size:>4} {'process  ' if size == 1 else 'processes'}  {short(hashes[size])}")
    other = next((size for size in sizes if hashes[size] != hashes[sizes[0]]), None)
    if other is None:
        return Verdict(True, f"parameters_sha256 is equal on {_listed(sizes)} processes")
    fast = request.config.strategy.reduction == "fast"
    hint = "; strategy.reduction=fast promises agreement only up to rounding" if fast else ""
    sentence = f"parameters_sha256 on {other} processes is not that on {sizes[0]}{hint}"
    return Verdict(False, sentence, (folder / f"processes_{sizes[0]}", folder / f"processes_{other}"))


def _sizes(text: str) -> list[int]:
    numbers = text.split(",")
    sizes = [int(number) for number in numbers if number.isascii() and number.isdigit() and int(number) > 0]
    if len(sizes) < len(numbers) or len({*sizes}) < max(2, len(sizes)):
        raise ConfigError(
            f"`--sizes` must be two or more different numbers of processes, got {text!r}; use for example 1,2,4"
        )
    return sizes


def _listed(sizes: Sequence[int]) -> str:
    return f"{', '.join(map(str, sizes[:-1]))} and {sizes[-1]}"
