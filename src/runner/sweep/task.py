"""One trial as a function of its configuration, which is what launchers of another make call, here or in a process of theirs."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """Called by Hydra with the trial's configuration, of which its words count; gives the final metrics."""

    config_dir: str | None
    command: tuple[str, ...]
    folder: str
    """Where the sweep was started: a process that a launcher keeps for the next sweep is where the last one was."""

    def __call__(self, config: Any) -> dict[str, float]:
        from hydra.core.hydra_config import HydraConfig

        from runner.config.compose import compose
        from runner.config.overrides import quoted
        from runner.errors import Interrupted
        from runner.training.run import execute

        os.chdir(self.folder)
        hydra = HydraConfig.get()
        directory = Path(hydra.sweep.dir) / str(hydra.job.num)
        words = [*hydra.overrides.task, f"run_dir={quoted(str(directory))}"]
        if (directory / "run.json").is_file():
            words = [f"resume={quoted(str(directory))}"]
        elif directory.is_dir():  # Hydra has made it
            shutil.rmtree(directory)
        try:
            run = execute(lambda earlier: compose(words, self.config_dir), self.command, quiet=True)
        except Interrupted as stop:
            # Any Exception is a failed trial for Hydra's launchers, which would go on with the next one.
            raise KeyboardInterrupt from stop
        metrics: dict[str, float] = run.summary["metrics"]
        return metrics
