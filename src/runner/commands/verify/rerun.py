"""`verify rerun RUN`: repeat a run in new processes and compare the bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.commands.arguments import Parser
from runner.commands.diverge.evidence import environment_differences
from runner.commands.diverge.runs import RecordedRun, read_run
from runner.commands.verify.processes import run_to_end
from runner.commands.verify.verdict import Verdict, print_line, short
from runner.config.overrides import quoted
from runner.errors import CheckpointError


def rerun(arguments: Sequence[str], folder: Path) -> Verdict:
    """Repeat the run of a directory and compare `parameters_sha256`."""
    parser = Parser("verify rerun")
    parser.add_argument("run", metavar="RUN")
    recorded = read_run(parser.parse_args(arguments).run, "RUN")
    if "parameters_sha256" not in recorded.summary:
        raise CheckpointError(
            f"`RUN` must be a finished run, got {recorded.path}, which is {recorded.status}; "
            f"finish it with resume={recorded.path}, or use another run"
        )
    repeated = repeat_run(recorded, folder)
    hashes = [str(run.summary["parameters_sha256"]) for run in (recorded, repeated)]
    for difference in environment_differences(recorded, repeated):
        print_line(f"note     {difference.name} was {difference.one}, now {difference.other}")
    print_line(f"recorded {short(hashes[0])}  {recorded.path}")
    print_line(
        f"repeated {short(hashes[1])}  on {recorded.record['world_size']} × {recorded.record['threads']} threads"
    )
    if hashes[0] == hashes[1]:
        return Verdict(True, f"the repeated run has the same parameters_sha256 as {recorded.path}")
    vmapped = recorded.record.get("lanes", 1) > 1
    hint = "; the recorded run was vmapped with others, see verify sweep" if vmapped else ""
    sentence = f"the repeated run has another parameters_sha256 than {recorded.path}{hint}"
    return Verdict(False, sentence, (recorded.path, repeated.path))


def repeat_run(recorded: RecordedRun, folder: Path) -> RecordedRun:
    """Repeat a run below `folder` with the same number of processes and threads.

    Raises `InputError` and `RunFailed`.
    """
    directory = folder / "again" / recorded.path.name
    overrides = [
        f"device.threads={recorded.record['threads']}",
        "record.plots=false",
        f"run_dir={quoted(str(directory))}",
    ]
    run_to_end(recorded.rerun_arguments(*overrides), folder / "again.log")
    return read_run(str(directory), "run_dir")
