"""One trial as a function of its configuration: Hydra's own launchers call it, in this process or in one of theirs."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """Hydra's task function. It uses the overrides of the configuration that Hydra composed, and returns the final metrics."""

    config_dir: str | None
    command: tuple[str, ...]
    working_dir: str
    """Directory in which the sweep was started."""

    def __call__(self, config: Any) -> dict[str, float]:
        """Run the trial in its directory, or resume it. Raises `KeyboardInterrupt` after a signal."""
        from hydra.core.hydra_config import HydraConfig

        from runner.config.compose import compose
        from runner.config.overrides import quoted
        from runner.errors import Interrupted, RunFailed, RunnerError
        from runner.runs.records import selected_metrics
        from runner.sweep.trials import resuming
        from runner.training.run import execute

        # A process that a launcher keeps for the next sweep is in the directory of the previous one.
        os.chdir(self.working_dir)
        hydra = HydraConfig.get()
        directory = Path(hydra.sweep.dir) / str(hydra.job.num)
        overrides = [*hydra.overrides.task, f"run_dir={quoted(str(directory))}"]
        if (directory / "run.json").is_file():
            overrides = resuming(directory, hydra.overrides.task)
        elif directory.is_dir():  # made by Hydra
            shutil.rmtree(directory)
        try:
            run = execute(lambda earlier: compose(overrides, self.config_dir), self.command, quiet=True)
        except Interrupted as stop:
            # Hydra's launchers take any Exception for a failed trial, and would start the next one.
            raise KeyboardInterrupt from stop
        except RunnerError:
            raise
        except Exception as error:  # a bug, which ends this trial alone
            raise RunFailed(f"{type(error).__name__}: {error}") from error
        return selected_metrics(run.summary)
