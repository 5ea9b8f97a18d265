"""What a run would find out about a model of the user's own."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace

from runner.config import imports
from runner.config.schema import Config
from runner.errors import RunnerError


def remarks(config: Config) -> list[str]:
    """Return sentences on what a model of the user's own does, or on why that cannot be found out; none for other models.

    Data and model are built as for a run, but on the CPU. Code that is not trusted is not imported.
    """
    target = config.model.code
    if target is None:
        return []
    if untrusted := imports.problems(config.code):
        return untrusted
    from runner.training import build
    from runner.training.predicting import choose_device

    on_cpu = replace(config, device=replace(config.device, name="cpu"))
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the code may print
            prepared, _ = build.prepare(on_cpu, choose_device("cpu"), config.launch.processes * config.launch.nodes)
    except RunnerError as error:
        return list(getattr(error, "problems", (str(error),)))
    return [*prepared.model.remarks] or [f"{target.shown}: it maps each row by itself and draws no random numbers"]
