"""How much a model relies on each feature of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from runner.commands.evaluate.compared import Compared
from runner.compute.rng import stream
from runner.optim.student_t import Estimate, estimate
from runner.training.predicting import Predictor
from runner.training.scores import Scores


@dataclass(frozen=True)
class Importance:
    """The growth of the rmse without the information of one feature."""

    feature: str
    values: tuple[float, ...]
    """Growth in each shuffle, in the units of the file."""

    @property
    def estimate(self) -> Estimate:
        """Mean over the shuffles, with Student's interval."""
        return estimate(self.values)


def importances(
    predictor: Predictor, rows: Compared, scores: Callable[[], Scores], repeats: int
) -> Iterator[Importance]:
    """Yield the permutation importance of each feature: the growth of the rmse when its values are shuffled among the rows.

    Breiman, "Random Forests", Machine Learning 45 (2001) 5-32, section 10; with any model, Fisher, Rudin and Dominici, "All
    Models are Wrong, but Many are Useful", Journal of Machine Learning Research 20 (2019) 177. A feature is a column of the
    table, however many inputs it has. A shuffle depends on the name of the feature and the number of the repeat alone.
    """
    base, inputs = _rmse(rows, rows.prediction, scores()), predictor.inputs(rows.features)
    for name in rows.features:
        growth = []
        for repeat in range(repeats):
            order = torch.randperm(len(rows), generator=stream(0, f"importance/{name}", repeat))
            prediction = predictor.of_inputs(predictor.exchanged(inputs, name, order)).values
            growth.append(_rmse(rows, prediction, scores()) - base)
        yield Importance(name, tuple(growth))


def _rmse(rows: Compared, prediction: torch.Tensor, scores: Scores) -> float:
    scores.add(rows.target, prediction, rows.weight)
    return scores.metrics()["rmse"]
