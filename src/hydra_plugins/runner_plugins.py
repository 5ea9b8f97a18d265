"""Hydra's door to sweeps, which live in `runner.sweep`: Hydra takes plugins from `hydra_plugins` alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class VmapLauncher(Launcher):
    """`hydra/launcher=vmap`."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before the sweep."""
        from runner.sweep.launcher import SideBySide

        self.side_by_side = SideBySide(Path(config.hydra.sweep.dir))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """All trials of one program at once; what they come to, in the order of the jobs."""
        return self.side_by_side.launch(job_overrides, initial_job_idx)


class GridSweeper(Sweeper):
    """`hydra/sweeper=grid`."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before the sweep."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Every combination of the values in the arguments."""
        from runner.sweep.grid import jobs

        assert self.launcher is not None
        assert self.config is not None
        assert self.hydra_context is not None
        trials = jobs(arguments, self.hydra_context.config_loader, self.config.sweep.max_trials)
        return self.launcher.launch(trials, 0)
