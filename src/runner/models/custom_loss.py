"""Losses of the user's own: any `torch.nn.Module` without parameters that maps predictions and targets to the loss of each row."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from runner.compute.precision import default_dtype
from runner.config import imports
from runner.config import schema as c
from runner.config.imports import Target
from runner.errors import ConfigError, RunFailed
from runner.models import row_values
from runner.models.habits import Misfit

MODULE = "a subclass of torch.nn.Module"


class CustomLoss:
    """A module of the user's own as a cost: of rows [rows, targets], or of lanes of them [lanes, rows, targets]."""

    def __init__(self, module: nn.Module, target: Target) -> None:
        self.module, self.target = module, target
        self._place: tuple[torch.device, torch.dtype] | None = None

    def __call__(self, prediction: Tensor, target: Tensor, reduction: int = 1) -> Tensor:
        """Return the loss of each number, […, rows, targets], or of each row, […, rows, 1]; with a reduction their mean []."""
        self.follow(target)
        each = self._of_rows if prediction.dim() == 2 else torch.vmap(self._of_rows)
        costs: Tensor = each(prediction, target)
        return costs.mean() if reduction else costs

    def follow(self, target: Tensor) -> None:
        """Move the buffers of the module to the device and dtype of the targets."""
        if (place := (target.device, target.dtype)) != self._place:
            self.module.to(*place)
            self._place = place

    def _of_rows(self, prediction: Tensor, target: Tensor) -> Tensor:
        try:
            return row_values.values(self.module, prediction, target)
        except Misfit as error:
            raise RunFailed(f"{self.target.shown} must {error}") from error


def build(config: c.CustomLoss) -> CustomLoss:
    """Return the user's loss. Raises `ConfigError` if the class cannot be used."""
    target, arguments = config.code, c.plain(config)["kwargs"]
    kind = imports.load(target, nn.Module, MODULE)
    if "reduction" in imports.parameters_of(kind) and arguments.get("reduction", "none") != "none":
        raise ConfigError(
            f"`loss.kwargs.reduction` must be none, because weights and portions need the loss of each row, got "
            f"{arguments['reduction']}; remove it"
        )
    # Numbers such as a share of 0.9 keep all their digits until they are cast to the dtype of the data.
    with torch.random.fork_rng(devices=[]), default_dtype(torch.float64), torch.device("cpu"):
        torch.default_generator.manual_seed(0)  # what is drawn is the same on every process, and after a resume
        module = imports.called(target, kind, arguments, {"reduction": "none"}, "loss.kwargs")
    names = [name for name, _ in module.named_parameters()]
    if names:
        raise ConfigError(
            f"{target.shown} must have no parameters, which nothing would train, got {', '.join(names[:3])}; "
            "register numbers with register_buffer"
        )
    return CustomLoss(module, target)


def problems(config: c.CustomLoss, prediction: Tensor, target: Tensor) -> Iterator[str]:
    """Yield the problem of a loss with rows of predictions and targets [rows, targets]."""
    prediction = prediction.detach().clone().requires_grad_()
    cost = build(config)
    cost.follow(target)
    try:
        with row_values.explained(config.code, "its forward pass"):
            costs = row_values.probe(cost.module, prediction, target)
            _check_numbers(costs, prediction, target)
    except ConfigError as error:
        yield from error.problems


def _check_numbers(costs: Tensor, prediction: Tensor, target: Tensor) -> None:
    """Raise `Misfit` for losses that have no gradient, and for those of numbers that are not numbers."""
    gradient = torch.autograd.grad(costs.sum(), prediction, allow_unused=True)[0] if costs.requires_grad else None
    if gradient is None:
        raise Misfit(
            "depend on the prediction, but has no gradient by it; compute without no_grad, detach and rounding"
        )
    finite = prediction.isfinite().all(1)
    for what, found in {"return finite numbers": costs, "have finite gradients": gradient}.items():
        wrong = finite & ~found.isfinite().all(1)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            texts = [", ".join(f"{x:.6g}" for x in part[row].tolist()) for part in (found, prediction, target)]
            raise Misfit("{}, got {} for the prediction {} and the target {}; correct it".format(what, *texts))
