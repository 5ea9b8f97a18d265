"""Checkpoints that several processes write together, also when one of them fails."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import threading
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # the first DTensor imports it: once here, not in every forked process
from processes import on, values
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from training import connected

from runner.errors import CheckpointError, Interrupted, RunFailed, RunnerError
from runner.runs import checkpoint
from runner.runs.saver import Saver

State = dict[str, Any]
FIXED = {"config": {"seed": 1}}
SHAPES = {"even": (4, 3), "uneven": (5, 2), "three": (3,), "one": (1, 4), "flat": (7,)}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64)


def whole(step: int) -> State:
    """Return the state of all processes together, in whole tensors."""
    tensors = {
        f"{name}.{dtype}": (torch.arange(torch.Size(shape).numel()).reshape(shape) * 1.1 - step).to(dtype)
        for name, shape in SHAPES.items()
        for dtype in DTYPES
    }
    tensors["special"] = torch.tensor([float("nan"), -0.0, float("inf"), 5e-324, 1 / 3], dtype=torch.float64)
    return {
        "model": {**tensors, "scalar": torch.tensor(step + 0.5), "stage.0": torch.ones(2), "stage.1": torch.zeros(3)},
        "optimizer": {
            **{name: {"exp_avg": tensor * 2, "step": torch.tensor(float(step))} for name, tensor in tensors.items()},
            "stage.0": {"momentum_buffer": None},
            "stage.1": {"momentum_buffer": None, "calls": 3},
        },
        "scaler": {"scale": 2.0},
        "best": {"value": None},
    }


def held(state: State, rank: int, size: int) -> State:
    """Return the part of one process: its shard of most tensors, whole single numbers, and one of the two stages."""
    mesh = init_device_mesh("cpu", (size,))

    def part(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {slot: part(name if slot != "step" else slot, inner) for slot, inner in value.items()}
        if not isinstance(value, Tensor) or name == "step" or name.startswith("stage"):
            return value
        placement = Replicate() if name == "scalar" else Shard(value.dim() - 1 if name.startswith("even") else 0)
        return distribute_tensor(value, mesh, [placement], src_data_rank=None)

    def parts(values: State) -> State:
        names = [name for name in values if not name.startswith("stage") or name == f"stage.{rank}"]
        return {name: part(name, values[name]) for name in names}

    return {**state, "model": parts(state["model"]), "optimizer": parts(state["optimizer"])}


def saver(world: Any, folder: Path, sharded: bool = True, asynchronous: bool = False, keep: int | None = None) -> Saver:
    """Return the saver of one process."""
    return Saver(folder, FIXED, keep, world, sharded=sharded, asynchronous=asynchronous, timeout_seconds=30)


def save(folder: Path, steps: tuple[int, ...], **kinds: Any) -> None:
    """Save the checkpoints of some steps with two processes, the first one as the best."""

    def work(rank: int) -> None:
        with connected() as world:
            made = saver(world, folder, **kinds)
            for step in steps:
                made.save(step, held(whole(step), rank, 2), best=step == steps[0])
            made.close()

    values(2, work)


def loaded(folder: Path) -> checkpoint.Loaded:
    """Return the last checkpoint of a folder."""
    latest = checkpoint.load(folder)
    assert latest is not None
    return latest


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal in type and value, tensors in dtype, shape and every bit; mappings in any order."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
    return type(a) is type(b) and bool(a == b)


def expected(step: int) -> State:
    """Return the state that a checkpoint of a step must have."""
    return {"format": 1, "step": step, **whole(step), **FIXED}


# ------------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("asynchronous", [False, True], ids=["blocking", "asynchronous"])
def test_one_process_loads_the_same_bits_that_two_processes_saved(asynchronous: bool, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, (1, 2, 3), asynchronous=asynchronous, keep=1)
    latest = loaded(folder)
    assert (latest.step, latest.skipped) == (3, ())
    assert same(latest.state, expected(3))
    assert names(folder) == ["best", "last", "step_1", "step_3"]
    assert os.readlink(folder / "best") == "step_1"
    assert names(folder / "step_3") == [".metadata", "__0_0.distcp", "__1_0.distcp", "manifest.json", "state.pt"]
    assert str(tmp_path).encode() not in (folder / "step_3" / ".metadata").read_bytes()


def test_a_state_that_is_split_by_fsdp_and_tensor_parallelism_is_saved_whole(tmp_path: Path) -> None:
    def work(rank: int) -> State:
        with connected() as world:
            torch.manual_seed(5)
            model = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 5), torch.nn.Tanh())
            mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "layer"))
            parallelize_module(model, mesh["layer"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
            fully_shard(model, mesh=mesh["data"])
            optimizer = torch.optim.Adam(model.parameters())
            model(torch.ones(4, 3)).pow(2).sum().backward()
            optimizer.step()
            slots = {name: optimizer.state[parameter] for name, parameter in model.named_parameters()}
            saver(world, tmp_path / "checkpoints").save(
                1, {"model": model.state_dict(), "optimizer": slots}, best=False
            )
            return {
                "model": {name: value.full_tensor() for name, value in model.state_dict().items()},
                "optimizer": {
                    name: {slot: v.full_tensor() if hasattr(v, "full_tensor") else v for slot, v in values.items()}
                    for name, values in slots.items()
                },
            }

    gathered = values(4, work)[0]
    state = loaded(tmp_path / "checkpoints").state
    assert list(gathered["optimizer"]["2.weight"]) == ["step", "exp_avg", "exp_avg_sq"]
    assert same({part: state[part] for part in gathered}, gathered)


class Untouched(UserDict[str, Any]):
    """A state that must not be copied."""

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("it was copied")


@pytest.mark.parametrize("asynchronous", [False, True], ids=["blocking", "asynchronous"])
def test_only_rank_0_copies_and_writes_a_whole_state(asynchronous: bool, tmp_path: Path) -> None:
    def work(rank: int) -> None:
        with connected() as world:
            folder = tmp_path / ("checkpoints" if rank == 0 else "never")
            state: Any = whole(1) if rank == 0 else Untouched({"model": {}})
            made = saver(world, folder, sharded=False, asynchronous=asynchronous)
            made.save(1, state, best=False)
            made.close()

    values(2, work)
    assert same(loaded(tmp_path / "checkpoints").state, expected(1))
    assert names(tmp_path / "checkpoints" / "step_1") == ["manifest.json", "state.pt"]
    assert names(tmp_path) == ["checkpoints"]


# ------------------------------------------------------------------------------------------- F23: damaged on the disk


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 1 and 2, saved by two processes."""
    folder = tmp_path_factory.mktemp("written") / "checkpoints"
    save(folder, (1, 2))
    return folder


def flipped(data: bytes) -> bytes:
    """Return the data with one bit changed in the middle."""
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes | None], str]] = {
    "no metadata": (".metadata", lambda data: None, ".metadata is missing"),
    "empty metadata": (".metadata", lambda data: b"", ".metadata has 0 bytes, but manifest.json says "),
    "half the metadata": (".metadata", lambda data: data[: len(data) // 2], ".metadata has "),
    "a bit of the metadata": (".metadata", flipped, ".metadata does not match its SHA-256 in manifest.json"),
    "no shard": ("__1_0.distcp", lambda data: None, "__1_0.distcp is missing"),
    "half a shard": ("__1_0.distcp", lambda data: data[: len(data) // 2], "__1_0.distcp has "),
    "a bit of a shard": ("__0_0.distcp", flipped, "__0_0.distcp does not match its SHA-256 in manifest.json"),
    "no state": ("state.pt", lambda data: None, "state.pt cannot be read (No such file or directory)"),
    "no manifest": ("manifest.json", lambda data: None, "manifest.json cannot be read (No such file or directory)"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_previous_checkpoint_used(kind: str, written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(written, folder, symlinks=True)
    name, damage, reason = DAMAGE[kind]
    file = folder / "step_2" / name
    data = damage(file.read_bytes())
    file.unlink()
    if data is not None:
        file.write_bytes(data)
    latest = loaded(folder)
    assert same(latest.state, expected(1))
    assert len(latest.skipped) == 1
    assert latest.skipped[0].startswith(f"the checkpoint `{folder / 'step_2'}` is not used: {reason}")


def test_shards_of_another_step_are_not_mixed_in(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(written, folder, symlinks=True)
    for name in ("__0_0.distcp", "__1_0.distcp"):
        shutil.copy(folder / "step_1" / name, folder / "step_2" / name)
    latest = loaded(folder)
    assert same(latest.state, expected(1))
    reason = "__0_0.distcp does not match its SHA-256 in manifest.json"
    assert latest.skipped == (f"the checkpoint `{folder / 'step_2'}` is not used: {reason}",)


def test_a_file_without_an_entry_in_the_manifest_is_named(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path / "checkpoints", symlinks=True)
    path = tmp_path / "checkpoints" / "step_2"
    shutil.copy(path / "__1_0.distcp", path / "__2_0.distcp")
    assert checkpoint.verify(path) == "__2_0.distcp is not in manifest.json; move it away"
    (path / "__2_0.distcp").unlink()
    assert checkpoint.verify(path) is None
    (path / "shards").mkdir()
    assert checkpoint.verify(path) == "shards cannot be read (it is a folder)"


def test_without_an_intact_checkpoint_the_error_names_each(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path / "checkpoints", symlinks=True)
    for step in (1, 2):
        (tmp_path / "checkpoints" / f"step_{step}" / ".metadata").unlink()
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(tmp_path / "checkpoints")
    assert [".metadata is missing" in problem for problem in caught.value.problems] == [True, True, False]


# ---------------------------------------------------------------------------------- F18, F19, F31: failures during a save


def killed_after_writing(rank: int, killed: set[int]) -> None:
    """Kill some processes in the next save, after their shards are written and before `.metadata` is."""
    write = FileSystemWriter.write_data

    def last(self: Any, plan: Any, planner: Any) -> Any:
        written = write(self, plan, planner)
        if rank in killed:
            os.kill(os.getpid(), signal.SIGKILL)
        return written

    FileSystemWriter.write_data = last  # type: ignore[method-assign]  # in a forked process, which ends by os._exit


@pytest.mark.parametrize("asynchronous", [False, True], ids=["blocking", "asynchronous"])
@pytest.mark.parametrize("killed", [{1}, {0, 1}], ids=["one", "both"])
def test_a_kill_between_shards_and_metadata_leaves_the_previous_checkpoint(
    killed: set[int], asynchronous: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"

    def work(rank: int) -> None:
        with connected() as world:
            saver(world, folder).save(1, held(whole(1), rank, 2), best=False)
            killed_after_writing(rank, killed)
            made = saver(world, folder, asynchronous=asynchronous)
            made.save(2, held(whole(2), rank, 2), best=False)
            made.close()

    outcomes = on(2, work)
    assert outcomes[1].code == -signal.SIGKILL
    assert outcomes[0].code == (-signal.SIGKILL if 0 in killed else 1), outcomes[0].printed
    assert [name.split("-")[0] for name in names(folder)] == ["last", "step_1", "step_2.tmp"]
    latest = loaded(folder)
    assert same(latest.state, expected(1))
    assert latest.skipped == ()

    save(folder, (2,))
    assert names(folder) == ["best", "last", "step_1", "step_2"]
    assert same(loaded(folder).state, expected(2))


def failure(made: Saver, state: State, step: int) -> str:
    """Return the message of a save that must fail."""
    try:
        made.save(step, state, best=False)
        made.close()
    except RunFailed as error:
        return str(error)
    raise AssertionError("the save succeeded")


def big(step: int) -> State:
    """Return this process's part of a state with 200,000 numbers."""
    weight = torch.full((4, 50_000), float(step))
    mesh = init_device_mesh("cpu", (2,))
    return {"model": {"weight": distribute_tensor(weight, mesh, [Shard(0)], src_data_rank=None)}, "optimizer": {}}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["blocking", "asynchronous"])
def test_a_full_disk_of_one_process_is_reported_on_all_and_the_previous_checkpoint_remains(
    asynchronous: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"

    def work(rank: int) -> str:
        with connected() as world:
            saver(world, folder).save(1, big(1), best=False)
            if rank == 1:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, resource.RLIM_INFINITY))
            made = saver(world, folder, asynchronous=asynchronous)
            message = failure(made, big(2), 2)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert loaded(folder).step == 1
            world.any(False)  # every process has loaded it
            if rank == 0:
                assert names(folder) == ["last", "step_1"]
            saver(world, folder).save(3, big(3), best=False)
            return message

    for message in values(2, work):
        assert message.startswith(f"rank 1: saving step 2 failed: `{folder / 'step_2'}` cannot be written: ")
        assert "the file would be larger than is allowed" in message
    assert names(folder) == ["last", "step_1", "step_3"]
    assert loaded(folder).state["model"]["weight"][3, 49_999] == 3


@pytest.mark.parametrize("asynchronous", [False, True], ids=["blocking", "asynchronous"])
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_a_write_error_of_rank_0_is_raised_on_all(sharded: bool, asynchronous: bool, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.write_text("mine")

    def work(rank: int) -> str:
        with connected() as world:
            made = saver(world, folder, sharded=sharded, asynchronous=asynchronous)
            return failure(made, big(1) if sharded else whole(1), 1)

    for message in values(2, work):
        assert message.startswith(
            f"rank 0: saving step 1 failed: `{folder / 'step_1'}` cannot be written: `{folder}` is a file"
        )
    assert folder.read_text() == "mine"


def test_a_state_that_cannot_be_loaded_fails_on_all_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"

    def work(rank: int) -> str:
        with connected() as world:
            made = saver(world, folder)
            with pytest.raises(ValueError if rank == 0 else RunFailed) as caught:
                made.save(1, {**held(whole(1), rank, 2), "where": Path()}, best=False)
            return str(caught.value)

    text = "the state of step 1 cannot be loaded again: state.pt must hold only tensors and plain values"
    assert [message[: len(text) + 8] for message in values(2, work)] == [f"{text}, and is", f"rank 0: {text}"]
    assert names(folder) == []


def test_an_error_on_one_process_keeps_its_class_there_and_is_reported_on_all(tmp_path: Path) -> None:
    def work(rank: int) -> tuple[str, str]:
        def stopped(*arguments: Any) -> None:
            raise Interrupted(signal.SIGINT, "stopped at once")  # cannot be unpickled, as many errors cannot

        if rank == 1:
            FileSystemWriter.write_data = stopped  # type: ignore[assignment,method-assign]
        with connected() as world:
            with pytest.raises(RunnerError) as caught:
                saver(world, tmp_path / "checkpoints").save(1, held(whole(1), rank, 2), best=False)
            return type(caught.value).__name__, str(caught.value)

    first, second = values(2, work)
    assert first == ("ProcessLost", "rank 1: saving step 1 failed: stopped at once (SIGINT)")
    assert second == ("Interrupted", "stopped at once (SIGINT)")
    assert names(tmp_path / "checkpoints") == []


def test_a_folder_that_only_one_process_sees_is_reported(tmp_path: Path) -> None:
    def work(rank: int) -> str:
        with connected() as world:
            return failure(saver(world, tmp_path / str(rank)), held(whole(1), rank, 2), 1)

    for message in values(2, work):
        assert message.startswith(
            "rank 1: saving step 1 failed: `run_dir` must be on a disk that all processes share, but `"
        )
    assert names(tmp_path) == ["0"]
    assert names(tmp_path / "0") == []


# ----------------------------------------------------------------------------------------------- F31: asynchronous saves


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_training_continues_while_the_values_of_the_call_are_written(sharded: bool, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"

    def work(rank: int) -> bool:
        trained, draft = threading.Event(), checkpoint.draft

        def waiting(folder: Path, step: int) -> Path:
            assert trained.wait(20)
            return draft(folder, step)

        checkpoint.draft = waiting  # in a forked process, which ends by os._exit
        with connected() as world:
            made = saver(world, folder, sharded=sharded, asynchronous=True)
            state = held(whole(1), rank, 2) if sharded else whole(1)
            made.save(1, state, best=True)
            for _ in range(3):
                with torch.no_grad():
                    for tensor in state["model"].values():
                        tensor.fill_(7)
                state["scaler"]["scale"] = 0.0
                world.any(True)  # collectives of training are separate from those of the writer
                made.check()
            before = folder.exists()
            world.any(True)
            trained.set()
            made.close()
            return before

    assert values(2, work) == [False, False]
    assert same(loaded(folder).state, expected(1))


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_a_failure_of_an_asynchronous_save_is_raised_once_on_all_at_the_same_check(
    sharded: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    folder.write_text("mine")

    def work(rank: int) -> tuple[int, str]:
        with connected() as world:
            made = saver(world, folder, sharded=sharded, asynchronous=True)
            made.save(1, big(1) if sharded else whole(1), best=False)
            checks = 0
            try:
                while True:
                    checks += 1
                    made.check()
            except RunFailed as error:
                message = str(error)
            made.check()
            if rank == 0:
                folder.unlink()
            world.any(False)
            made.save(2, big(2) if sharded else whole(2), best=False)
            made.close()
            return checks, message

    first, second = values(2, work)
    assert first == second
    assert first[1].startswith("rank 0: saving step 1 failed: ")
    assert loaded(folder).step == 2
