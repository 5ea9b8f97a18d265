"""`verify rerun RUN`: the same run again, in new processes, gives the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.commands.arguments import Parser
from runner.commands.diverge.evidence import surroundings
from runner.commands.diverge.runs import Recorded, read
from runner.commands.verify.processes import finish
from runner.commands.verify.verdict import Verdict, say, short
from runner.config.overrides import quoted
from runner.errors import CheckpointError


def rerun(words: Sequence[str], folder: Path) -> Verdict:
    """Do the run of a directory again."""
    parser = Parser("verify rerun")
    parser.add_argument("run", metavar="RUN")
    recorded = read(parser.parse_args(words).run, "RUN")
    if "parameters_sha256" not in recorded.summary:
        raise CheckpointError(
            f"`RUN` must be a run that has finished, but {recorded.path} is {recorded.status}; "
            f"let it end (resume={recorded.path}), or give another one"
        )
    new = again(recorded, folder)
    hashes = [str(run.summary["parameters_sha256"]) for run in (recorded, new)]
    for difference in surroundings(recorded, new):
        say(f"note     {difference.name} was {difference.one}, and is {difference.other} now")
    say(f"recorded {short(hashes[0])}  {recorded.path}")
    say(f"again    {short(hashes[1])}  on {recorded.record['world_size']} × {recorded.record['threads']} threads")
    if hashes[0] == hashes[1]:
        return Verdict(True, f"parameters_sha256 of {recorded.path} is that of the same run done again")
    beside = (
        "; it was trained side by side with others, see verify sweep" if recorded.record.get("lanes", 1) > 1 else ""
    )
    sentence = f"parameters_sha256 of {recorded.path} is not that of the same run done again{beside}"
    return Verdict(False, sentence, (recorded.path, new.path))


def again(recorded: Recorded, folder: Path) -> Recorded:
    """The run done again below `folder`, on as many processes and threads. Raises `InputError` and `RunFailed`."""
    directory = folder / "again" / recorded.path.name
    given = [f"device.threads={recorded.record['threads']}", "record.plots=false", f"run_dir={quoted(str(directory))}"]
    finish(recorded.again(*given), folder / "again.log")
    return read(str(directory), "run_dir")
