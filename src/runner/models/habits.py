"""What a module of the user's own does besides mapping each row to its prediction: found out on a few rows, not assumed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PROBED_ROWS = 4
"""Rows of the forward passes that find out what a module does."""


@dataclass(frozen=True)
class Habits:
    """Habits on which promises depend."""

    draws: bool = False
    """Whether a forward pass in training draws from torch's generator, which every step seeds."""
    unseeded: bool = False
    """Whether two passes with the same rows and seed differ, so that there are other random numbers."""
    mixes_rows: bool = False
    """Whether the prediction of a row in training depends on the other rows of the batch, as with batch normalisation."""
    mixes_new_rows: bool = False
    """The same in evaluation mode."""
    changed: tuple[str, ...] = ()
    """Names of the buffers that a forward pass in training changes."""
    unused: tuple[str, ...] = ()
    """Names of the parameters that are trained and have no gradient."""

    @property
    def batch_matters(self) -> bool:
        """Whether a step depends on how its rows are divided into forward passes."""
        return self.mixes_rows or bool(self.changed)

    def phrases(self) -> Iterator[str]:
        """Yield what a user should know, as the ends of sentences about the model."""
        if self.mixes_rows:
            yield "its predictions in training depend on the other rows of the batch"
        if self.changed:
            yield f"its forward pass changes {_listed(self.changed)}"
        if self.draws:
            yield "it draws random numbers, which every step seeds"
        if self.unseeded:
            yield "it draws random numbers that are not torch's, so that no run of it can be repeated"
        if self.mixes_new_rows:
            yield "its predictions depend on the rows that are predicted together, so that each new row is predicted by itself"


class Misfit(ValueError):
    """The predictions of a module cannot be used. The text is what they must be and what they are."""


def probe(model: nn.Module, inputs: tuple[Tensor, ...], targets: int, prefix: str = "") -> Habits:
    """Return the habits of a module on the first rows of `inputs`, each [rows, columns]. The module itself is not changed.

    `prefix` is the beginning of all names in the module that is left out.

    Raises `Misfit` for predictions that are not [rows, targets], or that do not depend on the parameters.
    """
    few = tuple(_copied(values[:PROBED_ROWS]) for values in inputs)
    subject = copy.deepcopy(model).float()  # on the CPU, where not every dtype has every operation
    with torch.random.fork_rng(devices=[]):
        subject.train()
        before = _buffers(subject)
        torch.default_generator.manual_seed(0)
        seeded = torch.default_generator.get_state()
        first = subject(*few)
        draws = not torch.equal(torch.default_generator.get_state(), seeded)
        _check(first, len(few[0]), targets)
        if not all(torch.equal(_copied(values[:PROBED_ROWS]), seen) for values, seen in zip(inputs, few, strict=True)):
            raise Misfit(
                "leave the rows as they are, which are used again, got a forward pass that changes them; change a copy"
            )
        changed = tuple(
            name.removeprefix(prefix) for name, value in _buffers(subject).items() if not _equal(value, before[name])
        )
        again = _training_pass(subject, before, few)
        unseeded = not _equal(first, again)
        mixes = not unseeded and not _equal(_training_pass(subject, before, _others(few))[:1], first[:1])
        _restore(subject, before)
        subject.eval()
        prediction = subject(*few)
        mixes_new = not unseeded and not _equal(subject(*_others(few))[:1], prediction[:1])
    if not bool(prediction.isfinite().all()):
        raise Misfit(
            "return finite numbers for the first rows, got nan or inf; correct its start values, or remove these rows"
        )
    prediction.sum().backward()
    unused = tuple(
        name.removeprefix(prefix) for name, p in subject.named_parameters() if p.requires_grad and p.grad is None
    )
    return Habits(draws, unseeded, mixes, mixes_new, changed, unused)


def _copied(values: Tensor) -> Tensor:
    return values.to(torch.float32, copy=True) if values.is_floating_point() else values.clone()


def _training_pass(model: nn.Module, buffers: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
    """Return the predictions of a pass from the same buffers and random numbers as the first one."""
    _restore(model, buffers)
    torch.default_generator.manual_seed(0)
    with torch.no_grad():
        prediction: Tensor = model(*inputs)
    return prediction


def _others(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the inputs with the first row as it is, and other rows after it: of the same shape, so that rounding is the same."""
    return tuple(
        torch.cat([values[:1], values[1:] * 2 + 1 if values.is_floating_point() else values[1:].flip(0) * 0])
        for values in inputs
    )


def _check(prediction: object, rows: int, targets: int) -> None:
    wanted = f"return a tensor [rows, targets], here [{rows}, {targets}]"
    if not isinstance(prediction, Tensor):
        raise Misfit(f"{wanted}, got a {type(prediction).__name__}; return the predictions alone")
    if list(prediction.shape) != [rows, targets]:
        remedy = "add .unsqueeze(-1)" if list(prediction.shape) == [rows] and targets == 1 else "correct its last layer"
        raise Misfit(f"{wanted}, got {list(prediction.shape)}; {remedy}")
    if not prediction.is_floating_point():
        raise Misfit(f"{wanted} of real numbers, got {str(prediction.dtype).removeprefix('torch.')}; convert them")
    if not prediction.requires_grad:
        raise Misfit(
            f"{wanted} that depends on its parameters, got one without a gradient; compute it without no_grad and detach"
        )


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_buffers()}


def _restore(model: nn.Module, buffers: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in model.named_buffers():
            value.copy_(buffers[name])


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.detach().nan_to_num(), b.detach().nan_to_num())


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
