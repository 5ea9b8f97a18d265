"""Options of a search with Optuna. Their values are in `conf/hydra/sweeper/optuna.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from runner.config.parts import key


@dataclass(frozen=True, kw_only=True)
class OptunaOptions:
    """The keys of `hydra.sweeper`."""

    n_trials: int = key("trials in all, failed and pruned ones included", at_least=1)
    n_jobs: int = key("trials requested at once: a generation, which the launcher runs together", at_least=1)
    sampler: Literal["tpe", "gp", "cmaes", "qmc", "nsgaii", "random", "grid"] | None = key(
        "algorithm that chooses the values; null is tpe, and nsgaii for several metrics"
    )
    seed: int = key("seed of the sampler's random numbers", at_least=0, at_most=2**32 - 1)
    metric: str | tuple[str, ...] | None = key(
        "metric of summary.json, or several; null is valid/rmse, and train/rmse where no rows are held out"
    )
    direction: Literal["minimize", "maximize"] | tuple[Literal["minimize", "maximize"], ...] | None = key(
        "null maximizes r2 and minimizes any other metric"
    )
    storage: str | None = key("journal file that several sweeps share; null is optuna.log in the sweep directory")
    study_name: str = key("name of the study in the journal")
    pruner: Literal["none", "median", "sha", "hyperband"] = key("rule that ends trials early, by their rows of metrics")
    startup_trials: int = key("trials that end before the median prunes any", at_least=0)
    warmup_steps: int = key("steps of every trial before which it is not pruned", unit="steps", at_least=0)

    @property
    def metrics(self) -> list[str] | None:
        """Names of the metrics, or None if `metric` is null."""
        return [self.metric] if isinstance(self.metric, str) else list(self.metric or ()) or None

    @property
    def directions(self) -> list[str]:
        """Direction of every metric: minimize or maximize."""
        if self.direction is None:
            return ["maximize" if name.endswith("/r2") else "minimize" for name in self.metrics or [""]]
        return [self.direction] if isinstance(self.direction, str) else list(self.direction)

    @property
    def chosen_sampler(self) -> str:
        """Name of the sampler, with null replaced by the default for the number of metrics."""
        return self.sampler or ("nsgaii" if len(self.metrics or ()) > 1 else "tpe")
