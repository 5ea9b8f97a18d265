"""Command line: `python -m runner [verb] [options] key=value …`.

torch is imported only for a run, not for help or a refused configuration.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from runner import __version__
from runner.commands import USAGE, VERBS
from runner.commands.arguments import Parser
from runner.compute.gc_pause import gc_paused
from runner.compute.processes import launched, leads
from runner.compute.processes.exclusive import only_run
from runner.compute.signals import has_abandoned_work
from runner.config import introspection, trust
from runner.config.compose import Composed, compose
from runner.config.hydra_adapter import options as available_options
from runner.config.schema import Config, plain
from runner.config.validation import shown
from runner.errors import ConfigError, InputError, Interrupted, RemoteRankError, RunnerError, printable
from runner.runs.sinks.reporter import print_errors


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Return the exit code.

    0 finished, 1 failed or not converged, 2 refused, 130 or 143 stopped by a signal.
    """
    if arguments is None:
        _keep_folder_out_of_children()
    if arguments is not None:
        return _exit_code(list(arguments))
    code = _exit_code(sys.argv[1:])
    if not (launched(os.environ) or has_abandoned_work()):
        return code
    sys.stdout.flush()
    sys.stderr.flush()
    # Skip Python's shutdown, which threads can abort: sometimes those of gloo in torch 2.13 after all work is done, and one that
    # still computes a step which nobody waits for.
    os._exit(code)


def _keep_folder_out_of_children() -> None:
    """Let no process that is started import from the current folder, unless this one does, as `python -m runner` does."""
    if sys.path[0] not in ("", os.getcwd()):
        os.environ["PYTHONSAFEPATH"] = "1"  # since Python 3.11


def _exit_code(arguments: list[str]) -> int:
    """Run the arguments and report errors on stderr. Return the exit code."""
    try:
        arguments, packages = trust.split(arguments)
        with trust.granted(packages):
            return _command(arguments)
    except RemoteRankError as error:
        return error.exit_code  # the process in which it occurred has reported it
    except InputError as error:
        print_errors([printable(problem) for problem in error.problems], error.rank)
        return error.exit_code
    except Interrupted as stop:
        sys.stderr.write(f"{printable(str(stop))}\n")
        return stop.exit_code
    except RunnerError as error:
        print_errors([printable(str(error))], error.rank)
        return error.exit_code
    except KeyboardInterrupt:
        if leads(os.environ):
            sys.stderr.write("stopped before training began; nothing was written\n")
        return 130


_HYDRA = {
    ("--info", "-i"): "write explain to see where each value comes from: python -m runner explain +experiment=NAME",
    ("--hydra-help",): "write --help",
    ("--shell-completion", "-sc"): "write completion bash, zsh or fish: python -m runner completion bash",
    ("--package", "-p"): "write explain and the group to see: python -m runner explain +experiment=NAME optimizer",
    ("--run", "-r"): "leave it out, since without -m there is one run",
    ("--config-name", "-cn"): "write +experiment=NAME, for one of your own with --config-dir DIR",
    ("--config-path", "-cp"): "write --config-dir DIR for groups and experiments of your own",
    ("--experimental-rerun",): "write rerun RUN_DIR",
}
"""Hydra's own options that this program does not have, and what to write instead."""


class _OfHydra(argparse.Action):
    """One of Hydra's own options. Raises `ConfigError` with what to write instead."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        raise ConfigError(f"`{option_string}` is an option of Hydra, not of runner; {self.help}")


def _parser() -> Parser:
    parser = Parser()
    for names, instead in _HYDRA.items():
        parser.add_argument(*names, nargs="?", action=_OfHydra, help=instead)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--cfg", "-c")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("overrides", nargs="*")
    return parser


def _command(arguments: list[str]) -> int:
    """Run a verb, show something, or start a run or a sweep. Return the exit code."""
    place = _verb_place(arguments)
    if place is not None:
        with only_run():
            return _verb(arguments[place], arguments[place + 1 :] + arguments[:place])
    try:
        options, overrides = _read(arguments)
    except ConfigError:
        if leads(os.environ):
            raise
        return ConfigError.exit_code
    if options.help or options.version or options.cfg:
        return _show(options, overrides) if leads(os.environ) else 0
    is_sweep = options.multirun or _repeats(overrides)
    with only_run():
        return (_sweep if is_sweep else _run)(options, overrides, arguments)


def _repeats(overrides: Sequence[str]) -> bool:
    """Return whether arguments ask for a sweep without -m: over seeds, or over all folds of a cross-validation."""
    values = {name.lstrip("+"): value for name, _, value in (override.partition("=") for override in overrides)}
    folds = values.get("data.split.folds", "null") != "null" and "data.split.fold" not in values
    return "seeds" in values or folds


def _verb_place(arguments: list[str]) -> int | None:
    """Return the index of the verb, which only options and their values may precede, or None."""
    before = ""
    for place, argument in enumerate(arguments):
        if argument in VERBS and before not in ("--config-dir", "-cd", "--cfg", "-c"):
            return place
        if not (argument.startswith("-") or before.startswith("-")):
            return None
        before = argument
    return None


def _verb(verb: str, arguments: list[str]) -> int:
    """Run the `command` of a verb's module, or print its `USAGE`. Return the exit code."""
    if not leads(os.environ):
        return 0
    if launched(os.environ):
        raise ConfigError(
            f"`{verb}` must be started without a launcher, because it starts its own processes; start it with python"
        )
    if "--version" in arguments:
        return _print_version()
    module = importlib.import_module(f"runner.commands.{verb}")
    if {"--help", "-h"} & set(arguments):
        sys.stdout.write(module.USAGE)
        return 0
    code: int = module.command(arguments)
    return code


def _read(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options and the overrides. `options.base` is the run to repeat, or None. Raises `ConfigError`."""
    options, rest = _parser().parse_known_intermixed_args(arguments)
    overrides = options.overrides + rest
    options.help = options.help or not arguments
    if options.cfg not in (None, "job"):
        raise ConfigError(
            f"`--cfg` must be job, got {shown(options.cfg)}, because Hydra's own settings keep their values; write --cfg job"
        )
    if options.resolve and not options.cfg:
        raise ConfigError("`--resolve` must be used with --cfg; add --cfg job")
    options.base = None
    if overrides[:1] == ["rerun"]:
        if len(overrides) < 2:
            raise ConfigError("`rerun` must be followed by a run directory, got nothing; write rerun RUN_DIR")
        _, options.base, *overrides = overrides
    return options, overrides


def _show(options: argparse.Namespace, overrides: list[str]) -> int:
    """Print the help, the version or the configuration. Return exit code 0."""
    if options.help:
        sys.stdout.write(_help_text(options.config_dir))
    elif options.version:
        return _print_version()
    else:
        from omegaconf import OmegaConf

        values: Any = OmegaConf.create(plain(compose(overrides, options.config_dir, options.base).config))
        sys.stdout.write(OmegaConf.to_yaml(values))
    return 0


def _print_version() -> int:
    sys.stdout.write(f"runner {__version__}\n")
    return 0


def _run(options: argparse.Namespace, overrides: list[str], arguments: list[str]) -> int:
    """Run once: in this process, in processes that it starts, or as one of the processes of a launcher.

    Return exit code 1 if a least-squares solver did not converge.
    """

    def compose_run(earlier: str | None) -> Composed:
        """Compose the run, or the resumption of an earlier attempt."""
        with gc_paused():
            if earlier is not None:
                return compose([f"resume={earlier}"], options.config_dir)
            return compose(overrides, options.config_dir, options.base)

    from runner.compute.launch import launch, needs_launch
    from runner.compute.processes.notes import RUN_DIRECTORY
    from runner.runs.directory import record_failure
    from runner.training.run import execute

    command = ["python", "-m", "runner", *arguments]
    if launched(os.environ):
        return execute(compose_run, command).exit_code
    composed = compose_run(None)
    if needs_launch(composed.config):
        return launch(composed.config, arguments, on_failure={RUN_DIRECTORY: record_failure})
    return execute(lambda earlier: composed, command).exit_code


def _sweep(options: argparse.Namespace, overrides: list[str], arguments: list[str]) -> int:
    """Run a sweep: in this process, in processes that it starts, or as one of the processes of a launcher.

    Return exit code 1 if a trial failed.
    """
    from runner.compute.launch import launch
    from runner.compute.processes.notes import SWEEP_DIRECTORY
    from runner.sweep.distributed import follow
    from runner.sweep.manifest import record_failure
    from runner.sweep.run import launch_config, run_and_report

    if options.base is not None:
        raise ConfigError("`rerun` must not be given with -m, because it repeats one run; remove one of them")
    if not launched(os.environ):
        wide = launch_config(overrides, options.config_dir)
        if wide is not None:
            return launch(wide, arguments, on_failure={SWEEP_DIRECTORY: record_failure})
    elif not leads(os.environ):
        follow()
        return 0  # after another exit code, the launcher would end rank 0 before it has reported the error
    manifest, _ = run_and_report(overrides, options.config_dir, ["python", "-m", "runner", *arguments])
    return 0 if manifest.values["status"] == "finished" else 1


def _help_text(config_dir: str | None = None) -> str:
    """Return the usage, then the experiments and groups with a description of each option."""
    groups = available_options(config_dir)
    lines = [USAGE, "experiments"]
    lines += _option_lines(groups.pop("experiment", {}))
    for group, choices in groups.items():
        shown = introspection.offered(Config, group, choices)
        lines += ["", group, *_option_lines({name: choices[name] for name in shown})]
    return "\n".join([*lines, "", "All keys and their meanings: docs/config.md", ""])


def _option_lines(choices: dict[str, str]) -> list[str]:
    return [printable(f"  {name:<16} {description}") for name, description in choices.items()]
