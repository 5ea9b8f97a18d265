"""Hydra plugins of the runner. Hydra loads plugins from `hydra_plugins` only; the implementations are in `runner.sweep`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins import file_config_source
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from runner.config.hydra_adapter import SCHEME, load_yaml, user_file


class UserFiles(file_config_source.FileConfigSource):
    """`runner://FOLDER` in the search path: a folder of files that are checked before OmegaConf reads them."""

    @staticmethod
    def scheme() -> str:
        """Return the scheme that selects this class."""
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        """Return a file's content. Raises `ConfigError` for a file that must not be read."""
        name = self._normalize_file_name(config_path)
        file = Path(self.path, name)
        text = user_file(file)
        header = self._get_header_dict(text[:512])
        return ConfigResult(self.provider, f"{SCHEME}://{self.path}", load_yaml(text, file), header)

    def is_config(self, config_path: str) -> bool:
        """Return whether there is a file, also of a kind that `load_config` refuses."""
        return os.path.lexists(os.path.join(self.path, self._normalize_file_name(config_path)))


class VmapLauncher(Launcher):
    """`hydra/launcher=vmap`."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Create the launcher for the sweep directory."""
        from runner.sweep import vmap_launcher

        self.vmap_launcher = vmap_launcher.VmapLauncher(Path(config.hydra.sweep.dir))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train the trials of each program as one batch. Return the results in the order of the jobs."""
        return self.vmap_launcher.launch(job_overrides, initial_job_idx)


class GridSweeper(Sweeper):
    """`hydra/sweeper=grid`."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Create the launcher that the configuration names."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run every combination of the values in the arguments."""
        from runner.sweep.grid import jobs

        assert self.launcher is not None
        assert self.config is not None
        assert self.hydra_context is not None
        trials = jobs(arguments, self.hydra_context.config_loader, self.config.sweep.max_trials)
        return self.launcher.launch(trials, 0)


class OptunaSweeper(Sweeper):
    """`hydra/sweeper=optuna`."""

    def __init__(self, **options: Any) -> None:
        from runner.sweep.optuna_sweeper import Search

        self.search = Search(options)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Create the launcher that the configuration names."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> dict[str, Any]:
        """Search the space of the arguments. Return the best trials with metric and directions."""
        assert self.launcher is not None
        assert self.config is not None
        result = self.search.sweep(arguments, self.launcher, Path(self.config.hydra.sweep.dir))
        return {**result, "metric": self.search.metric, "directions": self.search.directions}


class PoolLauncher(Launcher):
    """`hydra/launcher=pool`."""

    def __init__(self, **options: Any) -> None:
        from runner.sweep.process_pool import Outcome, Pool

        self.pool = Pool(options)
        self.ended: Callable[[Outcome], None] | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Read the sweep directory and the user's own configuration directory."""
        self.directory = Path(config.hydra.sweep.dir)
        start = f"{SCHEME}://"
        paths = [path.removeprefix(start) for path in config.hydra.searchpath if path.startswith(start)]
        self.pool.config_dir = paths[0] if paths else None

    def check(self, jobs: Sequence[Sequence[str]]) -> None:
        """Check the options and the trials. Raises `ConfigError`."""
        self.pool.check(jobs)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run each trial in its own process. Return the results in the order of the jobs."""
        return self.pool.launch(job_overrides, initial_job_idx, self.directory, self.ended)
