"""Promises that a model or an optimizer of the user's own would break, found out before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from runner.config import constraints, imports
from runner.config import schema as c
from runner.errors import ConfigError
from runner.models.base import Model
from runner.models.custom import Custom
from runner.optim import traits
from runner.optim.traits import Traits


def check_model(config: c.Config, model: Model, few: Sequence[Tensor], size: int) -> None:
    """Find out what a model does, on the inputs of a few rows, each [rows, columns], for a run on `size` processes.

    Raises `ConfigError` with what it must not do.
    """
    problems = list(model.examine(tuple(few))) or [
        *_of_batches(config, model, size),
        *(_of_least_squares(config, model, few) if config.optimizer.least_squares else ()),
    ]
    if problems:
        raise ConfigError(problems)


def check_optimizer(config: c.Config, model: Model) -> Traits:
    """Return what is found out about the optimizer. Raises `ConfigError` with what it must not do."""
    found = traits.examine(config.optimizer, config.update, model.parameters())
    if config.strategy.name not in constraints.SHARDED or found.elementwise:
        return found
    target = config.optimizer.code
    assert target is not None  # those of this package are elementwise, or excluded by a constraint
    raise ConfigError(
        f"`strategy` must be single, dp or ddp with {target.shown}, whose update of a number depends on others of its "
        f"parameter, of which a process has a part with {config.strategy.name}; use strategy=ddp"
    )


def _of_batches(config: c.Config, model: Model, size: int) -> Iterator[str]:
    """Yield the problems of a model whose steps depend on how a batch is divided, where it would be."""
    because = "because its steps depend on how a batch is divided, as with batch normalisation"
    name = f"`model`={model.config_name}"
    if not model.batch_matters:
        return
    if size > 1 or config.strategy.name == "dp":
        yield f"{name} must be trained by one process on one device, {because}; use launch.processes=1 strategy=single"
    if config.strategy.reduction == "exact":
        yield f"`strategy.reduction` must be fast with {name}, {because}; use strategy.reduction=fast"
    if config.train.accumulate > 1:
        yield f"`train.accumulate` must be 1 with {name}, {because}; use train.accumulate=1"
    if config.optimizer.least_squares:
        yield f"`optimizer` must not be {config.optimizer.name} with {name}, {because}; use optimizer=adam"


def _of_least_squares(config: c.Config, model: Model, few: Sequence[Tensor]) -> Iterator[str]:
    """Yield the problem of a model whose residuals a least-squares method cannot use."""
    reason = _no_residuals(model, few)
    if reason is not None:
        yield f"`optimizer` must not be {config.optimizer.name} with `model`={model.config_name}, {reason}; use optimizer=adam"


def _no_residuals(model: Model, few: Sequence[Tensor]) -> str | None:
    if model.draws:
        return "whose residuals change between evaluations: it draws random numbers"
    if len(few) > 1:
        return (
            "whose residuals change between evaluations: 1 in 100 of the categories that it takes is hidden in training"
        )
    if not isinstance(model, Custom):
        return None
    parameters = dict(model.named_parameters())
    if not all(parameter.requires_grad for parameter in parameters.values()):
        return "some of whose parameters are not trained"
    try:
        model.jacobian(parameters, few[0])
    except Exception as error:  # torch.func has an error for each thing that it cannot follow
        return f"which torch.func cannot differentiate row by row ({imports.described(error)[:200]})"
    return None
