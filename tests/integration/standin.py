"""A stand-in for an accelerator: `python standin.py` trains on a device without memory, and prints a JSON line for each case.

Torch's Python backend makes a device named "standin", and FakeTensorMode computes shapes, types and devices without numbers.
While a step is taken, nothing may read a number from the device, copy a tensor between device and host, or index a tensor by
one of the host. Between steps, reads are answered with made-up numbers. This proves that no step waits for the device and that
all its tensors are there. It proves no numbers and no speed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from runner.compute import transfer
from runner.compute.devices import DeviceChoice
from runner.compute.processes import SingleProcess
from runner.config.compose import compose
from runner.config.schema import Config
from runner.data.dataset import Dataset
from runner.errors import Interrupted
from runner.optim import torch_optim
from runner.training import build, vmapped
from runner.training.build import Inputs
from runner.training.step import EagerStep, GraphedStep, Step

aten = torch.ops.aten
_setup_privateuseone_for_python_backend("standin")
DEVICE = torch.device("standin:0")
CPU = DeviceChoice("cpu", "cpu", "CPU", "cpu")
# 22 training rows in batches of 8, 8 and 6.
EXPERIMENT = (
    "name=standin", "data.standardize=true", "data.split.valid=8", "device=cpu",
    "train.batch_size=8", "train.steps=40", "optimizer.lr=0.05", "train.eval_every_steps=2",
    "record.every_steps=2", "strategy=single",
)  # fmt: skip
LINE = ("data=line", "data.rows=30", "data.features=2")
TABLE = ("data=csv", "data.path=kinds.csv", "data.target=y")
LAST_STEP = 6
"""The fourth batch of 8 rows is step 5: it is captured, after three eager ones."""


GLANCES = (torch.ops.prim.device, aten.select, aten.unbind, aten.view, aten.alias, aten.detach)
"""Operations of `Tensor.tolist` between its reads."""

NO_SHAPES = (aten._fused_sgd_, aten._fused_adam_, aten._fused_adamw_)
"""Operations in place whose shapes torch does not compute."""

INDEXING = (aten.index, aten.index_put_, aten.index_select)


class Waits(Exception):
    """A step did something that waits for the device, or that leaves it."""


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers reads of the device with made-up numbers, and refuses them while a step is taken."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake = fake
        self.in_step = self.in_graph = self.in_evaluation = self.read_in_evaluation = False

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = kwargs or {}, operation.overloadpacket
        devices = {value.device.type for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        on_device = DEVICE.type in devices
        answer = _answer(packet, args, kwargs)
        if answer is not None:
            return self._read(operation, answer) if on_device else answer()
        if packet in NO_SHAPES:
            return self._refuse_mixed(operation, devices)
        if on_device:
            self._check_use(operation, args)
        elif _target(packet, args, kwargs) == DEVICE.type and (self.in_graph or not kwargs.get("non_blocking")):
            self._refuse_in_step(operation)
        return operation(*self._faked(args), **kwargs)

    def _check_use(self, operation: Any, args: Any) -> None:
        """Refuse an operation on tensors of the device that also needs the host, or that is computed too late."""
        packet = operation.overloadpacket
        if packet is aten.copy_ and args[0].device.type != args[1].device.type:
            self._refuse_in_step(operation)
        if packet in INDEXING and any(
            index.device.type == "cpu" for index in tree_leaves(args[1:]) if isinstance(index, Tensor)
        ):
            raise Waits(f"{operation} with an index on the host")
        if self.read_in_evaluation and packet not in GLANCES:
            raise Waits(f"{operation} after a read of the same evaluation")

    @staticmethod
    def _refuse_mixed(operation: Any, devices: set[str]) -> None:
        if devices != {DEVICE.type}:
            raise Waits(f"{operation} with tensors on {', '.join(sorted(devices))}")

    def _read(self, operation: Any, answer: Callable[[], Any]) -> Any:
        self._refuse_in_step(operation)
        self.read_in_evaluation = self.in_evaluation
        with torch._C._DisableTorchDispatch():
            return answer()

    def _refuse_in_step(self, operation: Any) -> None:
        if self.in_step:
            raise Waits(f"{operation} within a step")

    def _faked(self, args: Any) -> Any:
        """Return arguments with real tensors of the CPU as fake ones: the device cannot be reached from real ones."""

        def fake(value: Any) -> Any:
            if isinstance(value, FakeTensor):
                value.constant = None  # torch would compute with the number on the host
                return value
            return self.fake.from_tensor(value) if isinstance(value, Tensor) else value

        return tree_map(fake, args)


class Constants(TorchFunctionMode):
    """Lets `torch.tensor(…, device="standin")` go through the host, as it does on every accelerator."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == DEVICE.type:
            return torch.tensor(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return function(*args, **kwargs)


def _target(packet: Any, args: Any, kwargs: Any) -> str:
    """Return the kind of device to which an operation copies its argument; empty for other operations."""
    if packet is not aten._to_copy:
        return ""
    return torch.device(kwargs.get("device") or args[0].device).type


def _answer(packet: Any, args: Any, kwargs: Any) -> Callable[[], Any] | None:
    """Return a function that answers an operation which reads numbers, with made-up ones; None for other operations."""
    if packet is aten._local_scalar_dense and isinstance(args[0], FakeTensor):
        return lambda: _number(args[0].dtype)
    if packet is aten.equal:
        return lambda: False
    if packet in (aten.is_pinned, aten._pin_memory):
        return lambda: False if packet is aten.is_pinned else args[0]
    if (
        args
        and isinstance(args[0], Tensor)
        and args[0].device.type == DEVICE.type
        and _target(packet, args, kwargs) == "cpu"
    ):
        return lambda: torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
    return None


def _number(dtype: torch.dtype) -> Any:
    return True if dtype == torch.bool else 1 if not dtype.is_floating_point else 0.5


@dataclass(frozen=True)
class Runs:
    """Graphs of a device on which a recording and its replay are one computation, without any copy from the host."""

    watch: Watch
    recordings: list[Callable[[], Tensor]] = field(default_factory=list)

    def warm_up(self) -> AbstractContextManager[None]:
        """Return an empty context: the device has no streams."""
        return nullcontext()

    def capture(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Return the computation, watched."""

        def computed() -> Tensor:
            self.watch.in_graph = True
            try:
                return compute()
            finally:
                self.watch.in_graph = False

        self.recordings.append(computed)
        return computed


@dataclass(frozen=True)
class WatchedStep:
    """A step during which nothing may wait for the device."""

    step: Step
    watch: Watch

    def __call__(self, step: int) -> Tensor:
        """Take the step."""
        self.watch.in_step = True
        try:
            return self.step(step)
        finally:
            self.watch.in_step = False

    def reset(self) -> None:
        """Reset the step."""
        self.step.reset()


class WatchedEvaluation:
    """An evaluation that may wait for the device once, at its end."""

    def __init__(self, evaluation: Any, watch: Watch) -> None:
        self._evaluation, self._watch = evaluation, watch

    def metrics(self, part: str) -> Any:
        """Return the metrics."""
        self._watch.in_evaluation = True
        try:
            return self._evaluation.metrics(part)
        finally:
            self._watch.in_evaluation = self._watch.read_in_evaluation = False


class StopAfter:
    """A request to stop after a step."""

    def requested(self, step: int) -> int | None:
        """Return SIGTERM from the last step on."""
        return signal.SIGTERM if step >= LAST_STEP else None


NO_SAVER: Any = SimpleNamespace(check=lambda: None, save=lambda step, state, best, first: None)


def train(
    overrides: Sequence[str], *, lanes: int = 0, graphed: bool = False, fault: str = "", dtype: Any = "float32"
) -> dict[str, int]:
    """Train some steps with looks and evaluations between them, and return their number and that of recorded steps.

    Raises `Waits` or torch's own error.
    """
    watch = Watch(FakeTensorMode(allow_non_fake_inputs=True))
    variants = [[f"seed={lane}", f"optimizer.lr={0.01 + 0.01 * lane}"] for lane in range(lanes)] or [[]]
    model = [] if any(o.startswith("model=") for o in overrides) else ["model=mlp", "model.widths=[5]"]
    data = [] if any(o.startswith("data=") for o in overrides) else LINE
    configs = [compose([*data, *EXPERIMENT, *model, *overrides, *variant], None).config for variant in variants]
    configs = [replace(config, dtype=dtype) for config in configs]  # the CPU has no float16
    inputs = [build.prepare(config, CPU, 1)[0] for config in configs]
    with watch.fake, watch, Constants():
        program: Any = _program(configs, [_moved(prepared) for prepared in inputs], lanes)
        program = FAULTS[fault](program)
        graphs = Runs(watch)
        step = EagerStep(program.objective, program.optimizer, program.schedule)
        if graphed:
            step = GraphedStep(step, graphs, required=True)  # type: ignore[assignment]
        evaluation = WatchedEvaluation(program.evaluation, watch)
        program = replace(program, step=WatchedStep(step, watch), evaluation=evaluation)
        infos = program.infos if lanes else [program.info]
        loop = program.loop([info.run_state([], NO_SAVER, None) for info in infos], StopAfter())
        with contextlib.suppress(Interrupted):
            loop.run()
        return {"steps": loop.step, "graphs": len(graphs.recordings)}


def _moved(prepared: Inputs) -> Inputs:
    """Return prepared inputs with their rows on the stand-in."""
    dataset: Dataset = prepared.dataset
    parts = {
        name: replace(rows, all=rows.all.map(lambda values: values.to(DEVICE))) for name, rows in dataset.parts.items()
    }
    for module in prepared.model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, torch.nn.Parameter(parameter.detach().to(DEVICE)))
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, buffer.to(DEVICE), persistent=False)
    prepared.model.to = lambda *device: prepared.model  # type: ignore[method-assign]  # it is there, and cannot be moved again
    return replace(prepared, dataset=replace(dataset, parts=parts), device=DEVICE)


def _program(configs: Sequence[Config], inputs: Sequence[Inputs], lanes: int) -> Any:
    if not lanes:
        return build.build(configs[0], inputs[0], SingleProcess())
    infos = [vmapped.run_info_of_lane(c, i, lanes) for c, i in zip(configs, inputs, strict=True)]
    return vmapped.build(infos, [i.model for i in inputs])


# --------------------------------------------------------------------------------------------------------------- faults


def _with_loss(wrong: Callable[[Tensor, Tensor, Tensor], Any]) -> Callable[[Any], Any]:
    """Return a fault: after each loss, something is done with loss, predictions and target."""

    def planted(program: Any) -> Any:
        loss = program.objective.loss

        def faulty(prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
            value: Tensor = loss(prediction, target, weight)
            wrong(value, prediction, target)
            return value

        return replace(program, objective=replace(program.objective, loss=faulty))

    return planted


def _branch(value: Tensor) -> float:
    return 1.0 if value > 0 else 0.0


def _host_rates(program: Any) -> Any:
    """A learning rate that a graph would copy from the host."""
    return replace(program, schedule=program.info.schedule)


def _impatient(program: Any) -> Any:
    """An evaluation that reads each chunk's sums before the next chunk is computed."""
    evaluation = program.evaluation

    def loss(prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        value: Tensor = evaluation.loss(prediction, target, weight)
        value.item()
        return value

    return replace(program, evaluation=replace(evaluation, loss=loss))


FAULTS: dict[str, Callable[[Any], Any]] = {
    "": lambda program: program,
    "item": _with_loss(lambda loss, prediction, target: loss.item()),
    "branch": _with_loss(lambda loss, prediction, target: _branch(loss)),
    "finite": _with_loss(lambda loss, prediction, target: bool(loss.isfinite())),
    "list": _with_loss(lambda loss, prediction, target: target.tolist()),
    "host": _with_loss(lambda loss, prediction, target: prediction.detach().cpu()),
    "array": _with_loss(lambda loss, prediction, target: prediction.detach().numpy()),
    "mask": _with_loss(lambda loss, prediction, target: target[target > 0]),
    "nonzero": _with_loss(lambda loss, prediction, target: target.nonzero()),
    "index": _with_loss(lambda loss, prediction, target: target[torch.tensor([0, 1])]),
    "mixed": _with_loss(lambda loss, prediction, target: prediction + torch.ones(1, 1)),
    "product": _with_loss(lambda loss, prediction, target: prediction @ torch.ones(1, 1)),
    "constant": _with_loss(lambda loss, prediction, target: loss + torch.tensor(1.0, device=DEVICE)),
    "filled": _with_loss(lambda loss, prediction, target: target.clone().copy_(torch.ones(target.shape))),
    "rate": _host_rates,
    "evaluation": _impatient,
}


# ---------------------------------------------------------------------------------------------------------------- cases


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the arguments of every training that must not wait."""
    for rule, update, dtype in itertools.product(
        ("sgd", "momentum", "adam", "adamw"), ("manual", "optimizer"), ("float64", "float32", "bfloat16", "float16")
    ):
        eps = ["optimizer.eps=1e-4"] if rule.startswith("adam") else []
        overrides = [f"optimizer={rule}", f"update={update}", "schedule=cosine", *eps]
        graphed = update == "manual" or dtype != "float64"  # torch reads a learning rate in float32
        yield f"{rule} {update} {dtype}", {"overrides": overrides, "dtype": dtype, "graphed": graphed}
    for rule in ("sgd", "momentum", "adam", "adamw"):
        for schedule in ("constant", "cosine"):
            overrides = [
                f"optimizer={rule}",
                f"schedule={schedule}",
                "train.clip_norm=0.5",
                "optimizer.weight_decay=0.1",
            ]
            yield f"vmapped {rule} {schedule}", {"overrides": overrides, "lanes": 3, "graphed": True}
    for name, overrides in VARIANTS.items():
        yield name, {"overrides": overrides, "graphed": True}
    embeddings = [*TABLE, "model=mlp", "model.widths=[5]", "model.embedding_size=2"]
    yield "embeddings", {"overrides": embeddings, "graphed": True}
    yield "embeddings full batch", {"overrides": [*embeddings, "train.batch_size=null"], "graphed": True}
    yield "vmapped embeddings", {"overrides": embeddings, "lanes": 3, "graphed": True}
    yield "eager", {"overrides": []}


VARIANTS = {
    "full batch": ["train.batch_size=null"],
    "accumulated": ["train.accumulate=3"],
    "accumulated full batch": ["train.batch_size=null", "train.accumulate=3"],
    "clipped": ["train.clip_norm=0.1", "update=manual"],
    "checked": ["train.check_gradients=true"],
    "dropout": ["model.dropout=0.3", "optimizer=adam"],
    "linear": ["model=linear", "loss=huber"],
    "polynomial": ["model=polynomial", "model.degree=3", "loss=mae"],
    "formula": ["model=formula", "model.expression=a*x1 + exp(-b*x2)", "loss=huber", "data.standardize=false"],
}


def report(values: dict[str, Any]) -> None:
    """Print a JSON line."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Train every case and every fault, and print what waited."""
    # The stand-in runs what CUDA runs.
    torch_optim.FUSED = (*torch_optim.FUSED, DEVICE.type)
    torch_optim.RATE_ON_DEVICE = (*torch_optim.RATE_ON_DEVICE, DEVICE.type)
    transfer.PINNED = (*transfer.PINNED, DEVICE.type)
    generators = [SimpleNamespace(manual_seed=lambda seed: None)]
    torch.standin.init, torch.standin.default_generators = lambda: None, generators  # type: ignore[attr-defined]
    Path("kinds.csv").write_text("kind,x,y\n" + "".join(f"{'abc'[i % 3]},{i * 0.1},{i % 3}\n" for i in range(30)))
    planted = {"overrides": ["update=manual", "schedule=cosine"], "graphed": True}
    faults = [(f"fault {name}", {**planted, "fault": name}) for name in FAULTS if name]
    for name, arguments in (*cases(), *faults):
        report({"case": name, **_outcome(arguments)})


def _outcome(arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return train(**arguments)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}


if __name__ == "__main__":
    main()
