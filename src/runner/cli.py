"""The command line: `python -m runner [verb] [options] key=value …`. torch is imported by a run, never by help or a config error."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from runner import __version__
from runner.commands.arguments import Parser
from runner.compute.gc_pause import gc_paused
from runner.compute.processes import launched
from runner.config.compose import Composed, compose
from runner.config.hydra_adapter import options
from runner.config.schema import plain
from runner.errors import ConfigError, InputError, Interrupted, RemoteRankError, RunnerError
from runner.runs.sinks.reporter import print_errors

USAGE = """\
python -m runner +experiment=NAME [key=value …]     one run
python -m runner resume=RUN_DIR [key=value …]       go on where a run stopped
python -m runner rerun RUN_DIR [key=value …]        the same again, in a new run directory
python -m runner -m … key=a,b,c key='range(0,8)'    a sweep over every combination; seeds=8 for eight seeds
python -m runner -m resume=SWEEP_DIR                what is missing of a sweep, or failed

python -m runner explain +experiment=NAME …         every value: where it was set, what it means; nothing is run
python -m runner doctor                             what this machine can do, what it cannot, and how to mend it
python -m runner parity +experiment=NAME …          the same experiment in every way there is, held against a reference
python -m runner verify rerun|resume|world-size|sweep …     does a run give the same bits again?
python -m runner diverge A B                        the first step and the first tensor in which two runs differ

options
  --help after a verb  its own options
  --config-dir DIR     your own groups and experiments, beside those below
  --cfg job            show the configuration, with references resolved, and stop
  --help, --version
"""

VERBS = ("parity", "verify", "diverge", "doctor", "explain")
"""Each is a module of its own name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code (0 finished, 1 failed, 2 cannot be run, 130 and 143 stopped)."""
    if arguments is not None or not launched(os.environ):
        return _answered(sys.argv[1:] if arguments is None else list(arguments))
    code = _answered(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by way of Python's own end: in torch 2.13 the threads of gloo now and then abort a process that has done its work.
    os._exit(code)


def _answered(words: list[str]) -> int:
    """The exit code, with what went wrong told on the error stream."""
    try:
        return _command(words)
    except RemoteRankError as error:
        return error.exit_code  # the process that it happened on has told
    except InputError as error:
        print_errors([_one_line(problem) for problem in error.problems], error.rank)
        return error.exit_code
    except Interrupted as stop:
        sys.stderr.write(f"{_one_line(str(stop))}\n")
        return stop.exit_code
    except RunnerError as error:
        print_errors([_one_line(str(error))], error.rank)
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("stopped before training began; nothing was written\n")
        return 130


def _one_line(text: str) -> str:
    return text.replace("\r", "\\r").replace("\n", "\\n")


def _parser() -> Parser:
    parser = Parser()
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--cfg", "-c", choices=["job"])
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("overrides", nargs="*")
    return parser


def _command(words: list[str]) -> int:
    if words[:1] and words[0] in VERBS:
        return _verb(words[0], words[1:])
    try:
        given, overrides = _read(words)
    except ConfigError:
        if _speaks():
            raise
        return ConfigError.exit_code
    if given.help or given.version or given.cfg:
        return _show(given, overrides) if _speaks() else 0
    if given.multirun or any(word.lstrip("+").startswith("seeds=") for word in overrides):
        return _sweep(given, overrides, words)
    return _run(given, overrides, words)


def _verb(verb: str, words: list[str]) -> int:
    """A verb whose module does it all: `usage` says how, `command` does it and gives the exit code."""
    if not _speaks():
        return 0
    if launched(os.environ):
        raise ConfigError(f"`{verb}` starts the processes that it needs, but was started by a launcher; start it alone")
    module = importlib.import_module(f"runner.commands.{verb}")
    if {"--help", "-h"} & set(words):
        sys.stdout.write(module.USAGE)
        return 0
    code: int = module.command(words)
    return code


def _speaks() -> bool:
    """Whether this process answers for all that a launcher started."""
    return os.environ.get("RANK", "0") == "0" or not launched(os.environ)


def _read(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options and overrides; `given.base` is the run to do again. Raises `ConfigError`."""
    given, rest = _parser().parse_known_intermixed_args(words)
    overrides = given.overrides + rest
    given.help = given.help or not words
    if given.resolve and not given.cfg:
        raise ConfigError("`--resolve` goes with --cfg, which shows the configuration, but stands alone; add --cfg job")
    given.base = None
    if overrides[:1] == ["rerun"]:
        if len(overrides) < 2:
            raise ConfigError("`rerun` must be followed by a run directory, but nothing follows; write rerun RUN_DIR")
        _, given.base, *overrides = overrides
    return given, overrides


def _show(given: argparse.Namespace, overrides: list[str]) -> int:
    """What is asked for without a run."""
    if given.help:
        sys.stdout.write(help_text(given.config_dir))
    elif given.version:
        sys.stdout.write(f"runner {__version__}\n")
    else:
        from omegaconf import OmegaConf

        values: Any = OmegaConf.create(plain(compose(overrides, given.config_dir, given.base).config))
        sys.stdout.write(OmegaConf.to_yaml(values))
    return 0


def _run(given: argparse.Namespace, overrides: list[str], words: list[str]) -> int:
    """One run: in this process, in processes that it starts, or as one of those that a launcher started."""

    def ask(earlier: str | None) -> Composed:
        with gc_paused():
            if earlier is not None:
                return compose([f"resume={earlier}"], given.config_dir)
            return compose(overrides, given.config_dir, given.base)

    from runner.compute.launch import launch, needs_launch
    from runner.training.run import execute

    command = ["python", "-m", "runner", *words]
    if launched(os.environ):
        execute(ask, command)
        return 0
    composed = ask(None)
    if needs_launch(composed.config):
        return launch(composed.config, words)
    execute(lambda earlier: composed, command)
    return 0


def _sweep(given: argparse.Namespace, overrides: list[str], words: list[str]) -> int:
    """A sweep, in this process, in processes that it starts, or as one of those that a launcher started; 1 when a trial failed."""
    from runner.compute.launch import launch
    from runner.sweep.distributed import follow, release_followers
    from runner.sweep.run import audit_trials, launch_config, report_results, sweep

    if given.base is not None:
        raise ConfigError("`rerun` does one run again, but `-m` asks for a sweep; leave one of them out")
    if not launched(os.environ):
        wide = launch_config(overrides, given.config_dir)
        if wide is not None:
            return launch(wide, words)
    elif not _speaks():
        follow()
        return 0  # a launcher would end rank 0, which still has to say what was wrong
    try:
        manifest = sweep(overrides, given.config_dir, ["python", "-m", "runner", *words])
        report_results(manifest)
    finally:
        release_followers()
    audit_trials(manifest)
    return 0 if manifest.values["status"] == "finished" else 1


def help_text(config_dir: str | None = None) -> str:
    """Usage, then the experiments and the groups with a sentence each."""
    groups = options(config_dir)
    lines = [USAGE, "experiments"]
    lines += _listed(groups.pop("experiment", {}))
    for group, choices in groups.items():
        lines += ["", group, *_listed(choices)]
    return "\n".join([*lines, "", "Every key with its meaning: docs/config.md", ""])


def _listed(choices: dict[str, str]) -> list[str]:
    return [f"  {name:<16} {sentence}" for name, sentence in choices.items()]
