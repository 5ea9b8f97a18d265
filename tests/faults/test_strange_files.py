"""Files that somebody else put into a run, a sweep or a folder of experiments: refused by name, quickly, and never written to.

Each fault is injected for real: FIFOs, links to devices, loops of links, sparse files of 30 GB, sockets, and YAML and JSON
that describe more than any memory holds.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
import socket
import zipfile
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from runner.cli import main
from runner.runs.atomic import Appended
from runner.runs.checkpoint_manifest import manifest_of, size_and_hash
from runner.runs.sinks.jsonl import read_rows
from runner.runs.sinks.tensorboard import _record as record

RUN = ["+experiment=linreg", "optimizer=adam", "train.steps=4", "record.every_steps=2", "record.hash_every_steps=2"]
QUICK = ["record.plots=false", "device=cpu", "device.threads=1"]
RESUME = ["resume=x", "train.steps=6"]
START = [*RUN, *QUICK, "model.init_from=x", "run_dir=refused"]
DIVERGE = ["diverge", "x", "s/0"]
SECONDS = 20
"""After which a command counts as hanging. They take less than a second here."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run `run` and a finished sweep `sweep`."""
    folder = tmp_path_factory.mktemp("recorded")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main([*RUN, *QUICK, "run_dir=run"]) == 0
        assert main(["-m", *RUN, *QUICK[1:], "seeds=2", "run_dir=sweep"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def _here(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A copy of the run as `x` and of the sweep as `s`, and an alarm for a command that hangs."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(recorded / "run", "x", symlinks=True)
    shutil.copytree(recorded / "sweep", "s", symlinks=True)
    Path("mine").write_text("mine")

    def hangs(*_: object) -> None:
        raise TimeoutError("the command hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    def messages(*arguments: str) -> list[str]:
        """Return the messages of a command that must end with exit code 2."""
        capsys.readouterr()
        assert main(arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert all(line.startswith(("error: ", "note: ")) for line in lines)
        return [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]

    return messages


Refused = Callable[..., list[str]]


def put(kind: str, path: Path) -> None:
    """Put a strange file in a path's place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))
    elif kind == "30 GB":
        path.touch()
        os.truncate(path, 30 * 2**30)
    else:
        targets = {"a device": "/dev/zero", "a loop": path.name, "a link": str(Path("mine").resolve())}
        path.symlink_to(targets[kind])


KINDS = ["a FIFO", "a socket", "30 GB", "a device", "a loop", "a link"]
FILES = ["run.json", "config.yaml", "metrics.jsonl", "hashes.jsonl", "summary.json"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_a_strange_file_is_refused_by_every_reader(kind: str, name: str, refused: Refused) -> None:
    put(kind, Path("x", name))
    what = {"a device": "a link", "a loop": "a link", "30 GB": "it has more than "}.get(kind, kind)
    for arguments in (DIVERGE, ["verify", "rerun", "x"]):
        problem = refused(*arguments)[0]
        assert problem.startswith(f"x/{name} ")
        assert what in problem
    if kind != "30 GB" or name != "summary.json":
        assert any(f"x/{name} " in problem and what in problem for problem in refused(*RESUME))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["run.json", "summary.json", "preprocessing.json"])
def test_a_strange_file_of_the_run_of_a_start_is_refused(kind: str, name: str, refused: Refused) -> None:
    put(kind, Path("x", name))
    what = {"a device": "a link", "a loop": "a link", "30 GB": "it has more than "}.get(kind, kind)
    (problem,) = refused(*START)
    assert problem.startswith(f"x/{name} ")
    assert what in problem


@pytest.mark.parametrize("kind", ["a FIFO", "a device", "a loop", "a link"])
@pytest.mark.parametrize(
    "name", ["run.log", "metrics.jsonl", "hashes.jsonl", "events", "plots", "checkpoints", "mine.txt"]
)
def test_nothing_is_written_where_a_link_leads(kind: str, name: str, refused: Refused) -> None:
    path = next(Path("x").glob("events*")) if name == "events" else Path("x", name)
    put(kind, path)
    what = "a FIFO" if kind == "a FIFO" else "a link"
    record = Path("x/run.json").read_bytes()
    (problem,) = refused(*RESUME)
    assert problem.startswith(f"{path} must be a regular file")
    assert problem.endswith(f", got {what}; remove it")
    assert Path("mine").read_text() == "mine"
    assert Path("x/run.json").read_bytes() == record


@pytest.mark.parametrize("name", ["run.log", "metrics.jsonl", "residuals.csv", "preprocessing.json", "events"])
def test_a_folder_in_the_place_of_a_file_is_refused(name: str, refused: Refused) -> None:
    path = next(Path("x").glob("events*")) if name == "events" else Path("x", name)
    path.unlink(missing_ok=True)
    path.mkdir()
    assert refused(*RESUME) == [f"{path} must be a regular file, got a folder; remove it"]


def append(path: Path, held: bool) -> None:
    file = Appended(path, held=held)
    file.write(b"line\n")
    file.sync()


def test_a_link_that_appears_during_a_run_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "run.log").symlink_to("mine")
    for held in (False, True):
        with pytest.raises(OSError, match="it is a link"):
            append(tmp_path / "run.log", held)
    assert Path("mine").read_text() == "mine"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["state.pt", "manifest.json", ".metadata", "extra"])
def test_a_strange_file_in_a_checkpoint_is_named(kind: str, name: str, refused: Refused) -> None:
    put(kind, Path("x/checkpoints/step_4", name))
    first, last = refused(*RESUME)
    assert first.startswith("the checkpoint `x/checkpoints/step_4` is not used: ")
    assert name in first
    assert last.startswith("`x/checkpoints` has no intact checkpoint")


def test_a_checkpoint_that_is_a_link_is_not_used(refused: Refused) -> None:
    os.rename("x/checkpoints/step_4", "elsewhere")
    Path("x/checkpoints/step_4").symlink_to("../../elsewhere")
    assert refused(*RESUME)[0] == "the checkpoint `x/checkpoints/step_4` is not used: it is not a folder"


@pytest.mark.parametrize("target", ["/etc", "../../step_4", "step_4/../step_4", "step_04"])
def test_last_is_one_relative_component(target: str, recorded: Path) -> None:
    Path("x/checkpoints/last").unlink()
    Path("x/checkpoints/last").symlink_to(target)
    assert main(RESUME) == 0
    assert os.readlink("x/checkpoints/last") == "step_6"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["sweep.json", "results.csv", "plots"])
def test_a_strange_file_in_a_sweep_is_refused(kind: str, name: str, refused: Refused) -> None:
    put(kind, Path("s", name))
    if kind == "30 GB" and name != "sweep.json":
        pytest.skip("these are replaced, and not read")
    assert refused("-m", "resume=s")[0].startswith(f"s/{name} must be ")


@pytest.mark.parametrize("kind", ["a FIFO", "a device", "30 GB"])
@pytest.mark.parametrize("name", ["run.json", "config.yaml", "summary.json", "metrics.jsonl"])
def test_a_strange_file_of_a_trial_is_refused(kind: str, name: str, refused: Refused) -> None:
    put(kind, Path("s/0", name))
    what = {"a device": "it is a link", "30 GB": "it has more than "}.get(kind, "it is a FIFO")
    for arguments in (["verify", "sweep", "s"], ["diverge", "s/0", "x"]):
        (problem,) = refused(*arguments)
        assert problem.startswith(f"s/0/{name} ")
        assert what in problem


@pytest.mark.parametrize("kind", ["a FIFO", "a link"])
def test_a_strange_summary_fails_its_trial_alone(kind: str) -> None:
    put(kind, Path("s/0/summary.json"))
    assert main(["-m", "resume=s"]) == 1
    first, second = json.loads(Path("s/sweep.json").read_text())["members"]
    assert first["reason"] == f"s/0/summary.json must be a regular file, got {kind}; remove it"
    assert (first["state"], second["state"]) == ("failed", "finished")
    assert Path("mine").read_text() == "mine"


def test_a_trial_that_is_a_link_to_another_run_is_refused(refused: Refused) -> None:
    shutil.rmtree("s/1")
    Path("s/1").symlink_to("../x")
    assert refused("-m", "resume=s") == ["s/1 must be a regular file or a folder, got a link; remove it"]


@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "30 GB", "a device", "a loop"])
def test_a_strange_experiment_is_refused_and_help_is_printed(kind: str, refused: Refused) -> None:
    Path("groups/experiment").mkdir(parents=True)
    put(kind, Path("groups/experiment/bad.yaml"))
    for arguments in (["+experiment=bad"], ["explain", "+experiment=bad"], ["-m", "+experiment=bad", "seeds=2"]):
        verb, rest = (arguments[:1], arguments[1:]) if arguments[0] == "explain" else ([], arguments)
        (problem,) = refused(*verb, "--config-dir", "groups", *rest)
        assert problem.startswith("groups/experiment/bad.yaml must be a readable file, but ")
    assert main(["--config-dir", "groups", "--help"]) == 0


def test_an_experiment_may_be_a_link_to_a_file() -> None:
    Path("groups/experiment").mkdir(parents=True)
    Path("real.yaml").write_text("# @package _global_\nname: linked\ntrain: {steps: 2}\n")
    Path("groups/experiment/linked.yaml").symlink_to("../../real.yaml")
    assert main(["--config-dir", "groups", "+experiment=linked", *QUICK, "run_dir=y"]) == 0
    assert json.loads(Path("y/summary.json").read_text())["steps"] == 2


LOOPS = [
    ["run_dir=loop"], ["run_dir=loop/x"], ["resume=loop"], ["rerun", "loop"], ["diverge", "loop", "x"],
    ["verify", "rerun", "loop"], ["verify", "sweep", "loop"], ["-m", "resume=loop"], ["-m", "seeds=2", "run_dir=loop"],
    ["-m", "seeds=2", "run_dir=loop/x"], ["data=csv", "data.path=loop", "data.target=y"], ["--config-dir", "loop", "--help"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", LOOPS, ids=" ".join)
def test_a_loop_of_links_is_refused(arguments: list[str], refused: Refused) -> None:
    os.symlink("pool", "loop")
    os.symlink("loop", "pool")
    assert len(refused(*arguments)) == 1
    assert sorted(os.listdir()) == ["loop", "mine", "pool", "s", "x"]


def test_runs_below_a_loop_of_links_are_refused(refused: Refused) -> None:
    os.symlink("runs", "runs")
    for arguments in ([*RUN, *QUICK], ["-m", *RUN, *QUICK, "seeds=2"]):
        (problem,) = refused(*arguments)
        assert problem.startswith("`run_dir` must be ")
        assert "Too many levels of symbolic links" in problem


# -------------------------------------------------------------------------------------------------------- documents


def aliases(levels: int) -> str:
    lines = [f"b{i}: &b{i} [{', '.join([f'*b{i - 1}' if i else 'x'] * 10)}]" for i in range(levels)]
    return "\n".join(lines) + "\n"


def doubled(reference: str) -> str:
    return "".join(f"b{i}: '{reference.replace('#', str(i - 1)) * 2 if i else 'xx'}'\n" for i in range(40))


BOMBS = {
    "10^5 aliases": (aliases(5), "`b4` describes more than 20,000 values; use fewer, or fewer aliases (*)"),
    "10^9 aliases": (aliases(9), "`b4` describes more than 20,000 values; use fewer, or fewer aliases (*)"),
    "merged": (
        "b0: &b0 {x: 1}\n" + "".join(f"b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}'] * 9)}]}}\n" for i in range(1, 9)),
        "describes more than 20,000 values",
    ),
    "itself": ("train: &t {steps: *t}\n", "`train.steps` refers to itself; write the value out"),
    "deep": ("a: " + "[" * 100_000, "it must have at most 64 levels; make it flatter"),
    "deep and closed": ("a: " + "[" * 2_000 + "]" * 2_000, "it must have at most 64 levels; make it flatter"),
    "deep in a block": ("- " * 50_000 + "a\n", "it must have at most 64 levels; make it flatter"),
    "large": ("a: " + "x" * 2**21, "it has more than 1 MiB"),
    "nested references": (
        "name: " + "${oc.select:" * 500 + "x" + "}" * 500,
        "`name` must nest at most 16 references ${…}, got 500; use fewer",
    ),
    "digits": ("seed: " + "9" * 6_000, "`seed` is not an integer that can be read, '99"),
    "set": (
        "name: !!set {a}\n",
        "`name` has the type tag:yaml.org,2002:set; use a text, a number, a list or a mapping",
    ),
    "null key": ("train: {~: 1}\n", "`train` has a key that is null; give it a name"),
    "twice": ("seed: 1\nseed: 2\n", "`seed` is given twice; remove one of them"),
    "surrogate": ('name: "\\ud800"\n', "`name` has a character that UTF-8 lacks; correct it"),
    "empty integer": ('seed: !!int ""\n', "`seed` is not an integer that can be read, ''; put a text in quotes"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_yaml_that_must_not_be_loaded_is_named(name: str, refused: Refused) -> None:
    text, excerpt = BOMBS[name]
    Path("groups/experiment").mkdir(parents=True)
    Path("groups/experiment/bad.yaml").write_text("# @package _global_\n" + text)
    Path("x/config.yaml").write_text(text)
    for file, arguments in (
        ("groups/experiment/bad.yaml", ["--config-dir", "groups", "+experiment=bad"]),
        ("x/config.yaml", RESUME),
        ("x/config.yaml", ["rerun", "x"]),
    ):
        (problem,) = refused(*arguments)
        assert problem.startswith(file)
        assert excerpt in problem


@pytest.mark.parametrize("reference", ["${b#}", "${oc.select:b#}", "${.b#}"])
def test_references_that_double_a_text_are_refused(reference: str, refused: Refused) -> None:
    Path("groups/experiment").mkdir(parents=True)
    Path("groups/experiment/bad.yaml").write_text("# @package _global_\n" + doubled(reference))
    assert refused("--config-dir", "groups", "+experiment=bad") == [
        "`b16` must have at most 65,536 characters with references resolved, got 131,072; use fewer"
    ]


def test_references_that_double_a_group_are_refused(refused: Refused) -> None:
    groups = "b0: {x: 1}\n" + "".join(f"b{i}: {{x: '${{b{i - 1}}}', y: '${{b{i - 1}}}'}}\n" for i in range(1, 40))
    Path("groups/experiment").mkdir(parents=True)
    Path("groups/experiment/bad.yaml").write_text("# @package _global_\n" + groups)
    (problem,) = refused("--config-dir", "groups", "+experiment=bad")
    assert "must be small with references resolved, but it has more than 1,000 values; use fewer" in problem


def test_an_experiment_that_includes_itself_is_refused(refused: Refused) -> None:
    Path("groups/experiment").mkdir(parents=True)
    Path("groups/experiment/mine.yaml").write_text("# @package _global_\ndefaults: [/experiment: mine]\n")
    for verb in ([], ["explain"]):
        (problem,) = refused(*verb, "--config-dir", "groups", "+experiment=mine")
        assert problem.startswith("the configuration cannot be read: ")


def test_a_secret_is_not_copied_from_a_stranger(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "hidden")
    file = Path("x/config.yaml")
    file.write_text(file.read_text().replace("name: linreg\n", "name: ${oc.env:MY_SECRET}\n", 1))
    assert refused("rerun", "x") == [
        "x/config.yaml: `name` must be a value, got a reference '${oc.env:MY_SECRET}'; write the value"
    ]
    assert not Path("runs").exists()


JSON: dict[str, tuple[str | bytes, str]] = {
    "deep": ("[" * 100_000, "it has more than 64 levels"),
    "a list": ("[1]", "it is not an object"),
    "binary": (b"\xff", "it is not UTF-8"),
    "a constant": ('{"status": NaN}', "NaN is not JSON"),
    "digits": ('{"a": ' + "9" * 5_000 + "}", "it has an integer of 5,000 digits"),
    "twice": ('{"status": "finished", "status": "failed"}', "`status` is given twice"),
    "surrogate": ('{"a": "\\ud800"}', "it has a character that UTF-8 lacks"),
}


@pytest.mark.parametrize("name", JSON)
def test_json_that_cannot_be_read_is_named(name: str, refused: Refused) -> None:
    text, reason = JSON[name]
    data = text if isinstance(text, bytes) else text.encode()
    Path("x/run.json").write_bytes(data)
    Path("s/sweep.json").write_bytes(data)
    for arguments in (RESUME, DIVERGE, ["verify", "rerun", "x"]):
        assert refused(*arguments) == [
            f"x/run.json must be the record of a run, but cannot be read ({reason}); restore it"
        ]
    assert refused("-m", "resume=s") == [
        f"s/sweep.json must be the manifest of a sweep, but cannot be read ({reason}); restore it"
    ]


@pytest.mark.parametrize("name", JSON)
def test_a_summary_that_cannot_be_read_is_named(name: str, refused: Refused) -> None:
    text, reason = JSON[name]
    Path("x/summary.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    for arguments in (DIVERGE, ["verify", "rerun", "x"]):
        assert refused(*arguments) == [
            f"x/summary.json must be the summary of a run, but cannot be read ({reason}); restore it"
        ]


def test_what_is_printed_has_no_control_characters_of_a_file(
    refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = "\x1b[2J\x9b31m"
    lines = Path("x/hashes.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    first["parameters"] = {f"{odd}weight": "0"}
    Path("x/hashes.jsonl").write_text("\n".join([json.dumps(first), *lines[1:], ""]))
    Path("groups/experiment").mkdir(parents=True)
    Path("groups/experiment/mine.yaml").write_text(
        f"# @package _global_\n# {odd}\nrun_dir: {json.dumps(odd)}\n", encoding="utf-8"
    )
    Path("x/checkpoints/step_4", odd).touch()
    shutil.copytree("x/checkpoints/step_4", "x/checkpoints/step_2")
    capsys.readouterr()
    main(DIVERGE)
    main(["--config-dir", "groups", "--help"])
    main(["explain", "--config-dir", "groups", "+experiment=mine"])
    main(RESUME)
    printed = capsys.readouterr()
    assert [line for line in (printed.out + printed.err).splitlines() if not line.isprintable()] == []
    assert r"\x1b[2J" in printed.out


def test_a_message_has_no_control_characters_of_a_file(refused: Refused) -> None:
    manifest = json.loads(Path("s/sweep.json").read_text())
    Path("s/sweep.json").write_text(json.dumps(manifest | {"hydra": "\x1b[2J\x9b31m\t\r\n"}))
    (problem,) = refused("-m", "resume=s")
    assert problem.isprintable()
    assert problem.endswith(r"; write hydra=[\x1b[2J\x9b31m\t\r\n]")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resumed": "x"}, "`resumed` must be an integer of at least 0, got 'x'; restore the file"),
        ({"status": "x"}, "`status` must be one of running, finished, failed, interrupted, got 'x'; restore the file"),
        ({"world_size": 0}, "`world_size` must be an integer of at least 1, got 0; restore the file"),
        ({"lanes": None}, "`lanes` must be an integer of at least 1, got null; restore the file"),
        ({"format": 2}, "`format` must be at most 1, got 2; it was written by a newer version of runner, use that"),
    ],
)  # fmt: skip
def test_a_record_of_another_form_is_refused(change: dict[str, Any], message: str, refused: Refused) -> None:
    record = json.loads(Path("x/run.json").read_text())
    Path("x/run.json").write_text(json.dumps(record | change))
    for arguments in (RESUME, DIVERGE, ["verify", "rerun", "x"]):
        assert refused(*arguments) == [f"x/run.json: {message}"]


@pytest.mark.parametrize(
    ("line", "excerpt"),
    [
        ("[" * 100_000, "must be a JSON object"),
        ('{"step": 1e999}', "must have a `step` of at least 0"),
        ('{"step": true}', "must have a `step` of at least 0"),
        ('{"step": 1, "train/loss": {"a": 1}}', "must have numbers alone, got {'a': 1} for `train/loss`"),
        ('{"step": 1, "train/loss": "x"}', "must have numbers alone, got 'x' for `train/loss`"),
    ],
)
def test_a_row_of_another_form_is_refused(line: str, excerpt: str, refused: Refused) -> None:
    Path("x/metrics.jsonl").write_text(line + "\n")
    (problem,) = refused(*DIVERGE)
    assert problem.startswith("line 1 of `x/metrics.jsonl` ")
    assert excerpt in problem


@pytest.mark.parametrize("value", ["x", [1], {"a": 1}, None])
def test_a_row_that_a_resumed_run_would_keep_is_refused_before_the_run_is_changed(value: Any, refused: Refused) -> None:
    lines = Path("x/metrics.jsonl").read_text().splitlines(keepends=True)
    Path("x/metrics.jsonl").write_text(json.dumps(json.loads(lines[0]) | {"lr": value}) + "\n" + "".join(lines[1:]))
    before = {path: path.read_bytes() for path in Path("x").iterdir() if path.is_file()}
    (problem,) = refused(*RESUME)
    assert problem.startswith("line 1 of `x/metrics.jsonl` must have numbers alone, got ")
    assert {path: path.read_bytes() for path in Path("x").iterdir() if path.is_file()} == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "hashes.jsonl"])
@pytest.mark.parametrize("content", [b'{"step": -1}\n', b"\0" * 2**23], ids=["a step", "a long line"])
def test_a_line_that_cannot_be_read_is_refused_before_the_run_is_changed(
    name: str, content: bytes, refused: Refused
) -> None:
    with Path("x", name).open("ab") as file:
        file.write(content)
    before = {path: path.read_bytes() for path in Path("x").iterdir() if path.is_file()}
    (problem,) = refused(*RESUME)
    assert f"x/{name}" in problem
    assert {path: path.read_bytes() for path in Path("x").iterdir() if path.is_file()} == before


@pytest.mark.parametrize("seed", [{"a": 1}, [1], "x", None])
def test_any_seed_in_the_values_of_a_trial_is_reported(seed: Any) -> None:
    manifest = json.loads(Path("s/sweep.json").read_text())
    manifest["members"][1]["values"]["seed"] = seed
    Path("s/sweep.json").write_text(json.dumps(manifest))
    assert main(["-m", "resume=s"]) == 0
    assert len(Path("s/results.csv").read_text().splitlines()) == 3


def test_a_row_after_the_checkpoint_is_dropped_whatever_it_is() -> None:
    with Path("x/metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lr": "x"}\n[\n')
    assert main(RESUME) == 0
    assert [row["step"] for row in read_rows(Path("x/metrics.jsonl"))] == [2, 4, 6]


@pytest.mark.parametrize("name", ["events.out.tfevents.abc.x", "events.out.tfevents.", "events.out.tfevents.²"])
def test_an_event_file_of_another_name_is_left_alone(name: str) -> None:
    Path("x", name).write_bytes(b"junk")
    assert main(RESUME) == 0


def test_an_event_that_is_no_message_is_dropped() -> None:
    path = next(Path("x").glob("events*"))
    with path.open("ab") as file:
        file.write(record(b"\xff" * 10))
    assert main(RESUME) == 0
    steps = [event.step for event in EventFileLoader(str(path)).Load()]
    assert b"\xff" * 10 not in path.read_bytes()
    assert max(steps) == 4


@pytest.mark.parametrize("name", ["²", "٣", "007"])
def test_a_folder_that_is_no_number_of_a_trial_is_left_alone(name: str) -> None:
    Path("s", name).mkdir()
    assert main(["-m", "resume=s"]) == 0


# -------------------------------------------------------------------------------------------- what a prediction reads


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, a run `p` with rows of calibration, and a run `q` with a covariance."""
    folder = tmp_path_factory.mktemp("fitted")
    rows = [f"{i % 7},{'ab'[i % 2]},{i % 5 + i / 60}" for i in range(60)]
    (folder / "t.csv").write_text("\n".join(["x,c,y", *rows, ""]))
    table = [*QUICK, "data=csv", f"data.path={folder / 't.csv'}", "data.target=y"]
    numbers = ["data.numbers=quantile", "data.split.calibrate=20", "optimizer.lr=0.001", "train.steps=2"]
    assert main([*table, *numbers, f"run_dir={folder / 'p'}"]) == 0
    assert main([*table, "data.features=[x]", "optimizer=lstsq", f"run_dir={folder / 'q'}"]) == 0
    return folder


@pytest.fixture
def predicting(fitted: Path, refused: Refused) -> Refused:
    for name in ("p", "q"):
        shutil.copytree(fitted / name, name, symlinks=True)

    def messages(run: str) -> list[str]:
        """Return the messages of a prediction with intervals, which must be refused and leave nothing."""
        arguments = ["--input", str(fitted / "t.csv"), "--output", "out.csv", "--interval", "0.5", "--device", "cpu"]
        found = refused("predict", run, *arguments)
        assert not Path("out.csv").exists()
        return found

    return messages


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["p/preprocessing.json", "p/calibration.json", "q/covariance.json"])
def test_a_strange_file_of_a_prediction_is_refused(kind: str, name: str, predicting: Refused) -> None:
    put(kind, Path(name))
    what = {"a device": "a link", "a loop": "a link", "30 GB": "it has more than "}.get(kind, kind)
    (problem,) = predicting(name[0])
    assert problem.startswith(f"{name} must be ")
    assert what in problem


CONTENTS: dict[tuple[str, str], list[tuple[Any, str]]] = {
    ("p/calibration.json", "format"): [(2, "`format` must be at most 1, got 2; it was written by a newer version of runner, use that")],
    ("p/calibration.json", "step"): [(-1, "`step` must be an integer of at least 0, got -1"), (None, "`step` must be an integer")],
    ("p/calibration.json", "parameters_sha256"): [(3, "`parameters_sha256` must be a string, got 3"), ("0", "calibration.json must be of the state that predicts")],
    ("p/calibration.json", "targets"): [({}, "`targets` must be a list of groups of keys, got {}"), ([], "`targets` must be those of the run")],
    ("p/calibration.json", "targets.0.name"): [("z", "`targets` must be those of the run; restore the file")],
    ("p/calibration.json", "targets.0.train_deviation"): [(-1, "`targets.0.train_deviation` must be a finite number of at least 0, got -1"), ("nan", "`targets.0.train_deviation` must be a finite number")],
    ("p/calibration.json", "targets.0.target"): [([], "`targets` must have as many targets as predictions"), ([1.0] * 10**4, "`targets` must have as many targets as predictions"), (3, "`targets.0.target` must be a list")],
    ("p/calibration.json", "targets.0.prediction.0"): [(math.inf, "`targets.0.prediction` must be a list, each item a finite number"), ("x", "`targets.0.prediction` must be a list, each item a finite number"), (10**399, "`targets.0.prediction` must be a list, each item a finite number")],
    ("q/covariance.json", "deviation"): [(math.inf, "`deviation` must be a finite number of at least 0"), ([1], "`deviation` must be a finite number")],
    ("q/covariance.json", "degrees_of_freedom"): [(0, "`degrees_of_freedom` must be an integer of at least 1, got 0"), (1.5, "`degrees_of_freedom` must be an integer")],
    ("q/covariance.json", "inverse"): [([[1.0]], "`inverse` must have 2 rows of 2 finite numbers, got [[1.0]]"), (None, "`inverse` must have 2 rows"), ([[0.0] * 2] * 10**4, "`inverse` must have 2 rows of 2")],
    ("q/covariance.json", "inverse.0.1"): [(math.inf, "`inverse` must have 2 rows of 2 finite numbers"), (10**350, "`inverse` must have 2 rows of 2 finite numbers"), (True, "`inverse` must have 2 rows")],
    ("p/preprocessing.json", "features"): [([], "`inputs` must be the columns that `features` make"), ({"a": 1}, "`features` must be a list of groups of keys")],
    ("p/preprocessing.json", "features.0.kind"): [("text", "`features.0.kind` must be one of number, date")],
    ("p/preprocessing.json", "features.0.mean"): [(math.inf, "`features.0.mean` must be a finite number")],
    ("p/preprocessing.json", "features.0.transform.kind"): [("rank", "`features.0.transform.kind` must be one of quantile, robust, got 'rank'")],
    ("p/preprocessing.json", "features.0.transform.quantiles"): [([], "`features.0.transform.quantiles` must ascend, and be one at least"), ([2, 1], "`features.0.transform.quantiles` must ascend"), (["a"], "`features.0.transform.quantiles` must be a list, each item a finite number")],
    ("p/preprocessing.json", "features.1.values"): [([], "`inputs` must be the columns that `features` make"), ([1], "`features.1.values` must be a list, each item a string"), (["a"] * 10**4, "`inputs` must be the columns that `features` make")],
    ("p/preprocessing.json", "inputs.0.scale"): [(0, "`inputs.0.scale` must be a finite number above 0, got 0"), (math.inf, "`inputs.0.scale` must be a finite number")],
    ("p/preprocessing.json", "targets.0.mean"): [("1", "`targets.0.mean` must be a finite number, got '1'")],
    ("p/preprocessing.json", "targets"): [([], "`targets` must have different names, and one at least")],
}  # fmt: skip


@pytest.mark.parametrize(("name", "key"), CONTENTS, ids=str)
def test_a_strange_value_of_a_prediction_is_refused(name: str, key: str, predicting: Refused) -> None:
    whole = json.loads(Path(name).read_text())
    for value, message in CONTENTS[name, key]:
        changed = json.loads(json.dumps(whole))
        *groups, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        place = reduce(lambda group, part: group[part], groups, changed)
        place[last] = value
        Path(name).write_text(json.dumps(changed).replace("Infinity", "1e999"))
        problem = predicting(name[0])[0]
        assert problem.startswith(name)
        assert message in problem


def test_integers_that_a_float_has_are_floats(predicting: Refused, fitted: Path) -> None:
    values = json.loads(Path("p/preprocessing.json").read_text())
    values["features"][0]["transform"]["quantiles"][-1] = 10**300
    Path("p/preprocessing.json").write_text(json.dumps(values))
    assert main(["predict", "p", "--input", str(fitted / "t.csv"), "--output", "out.csv", "--device", "cpu"]) == 0


# ---------------------------------------------------------------------------------------------- sealed checkpoints


def seal(data: bytes) -> None:
    """Write a state with a manifest that fits: anybody can compute its hashes."""
    folder = Path("x/checkpoints/step_4")
    (folder / "state.pt").write_bytes(data)
    (folder / "manifest.json").write_bytes(manifest_of(4, {"state.pt": size_and_hash(data)}))


def saved(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def laughs() -> Any:
    value: Any = ["x"]
    for _ in range(40):
        value = [value, value]
    return value


STATES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "empty": (lambda s: s.clear(), "`model` must have values by name, got null"),
    "no seconds": (lambda s: s.pop("seconds"), "`seconds` is missing; it must be a finite number of at least 0"),
    "no decision": (lambda s: s.pop("stopped_early"), "`stopped_early` is missing; it must be true or false"),
    "text": (lambda s: s.update(config="x"), "`config` must have values by name, got 'x'"),
    "best": (lambda s: s["best"].update(waited=-1), "`best.waited` must be an integer of at least 0, got -1"),
    "nan": (lambda s: s.update(seconds=float("nan")), "`seconds` must be a finite number of at least 0, got nan"),
    "newer": (lambda s: s.update(format=2), "`format` must be at most 1, got 2; it was written by a newer version"),
    "laughs": (
        lambda s: s.update(scaling={"a": laughs()}),
        "state.pt cannot be used: it has more than 1,000,000 values",
    ),
    "shape": (
        lambda s: s["model"].update(weight=torch.zeros(3, 3)),
        "`model.weight` must be float32 [1, 1], got float32 [3, 3]; restore the checkpoint",
    ),
    "integers": (
        lambda s: s["model"].update(weight=torch.zeros(1, 1, dtype=torch.int64)),
        "`model.weight` must be float32 [1, 1], got int64 [1, 1]; restore the checkpoint",
    ),
    "expanded": (
        lambda s: s["model"].update(weight=torch.zeros(1).expand(10**12)),
        "`model.weight` must be float32 [1, 1], got float32 [1000000000000]; restore the checkpoint",
    ),
    "another name": (lambda s: s["model"].update(z=torch.zeros(1)), "`model.z` is no parameter of this model"),
    "no weight": (lambda s: s["model"].pop("weight"), "`model.weight` is missing"),
    "another optimizer": (
        lambda s: s["optimizer"].update(weight={"momentum_buffer": torch.zeros(1, 1)}),
        "`optimizer.weight` must have exp_avg, exp_avg_sq, step for optimizer=adam, got momentum_buffer",
    ),
    "slot": (
        lambda s: s["optimizer"]["weight"].update(exp_avg=3),
        "`optimizer.weight.exp_avg` must be a floating-point tensor [1, 1], got a int",
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_a_sealed_state_of_another_form_is_refused_and_nothing_is_changed(name: str, refused: Refused) -> None:
    change, excerpt = STATES[name]
    state = torch.load("x/checkpoints/step_4/state.pt", weights_only=True)
    change(state)
    seal(saved(state))
    record, summary = Path("x/run.json").read_bytes(), Path("x/summary.json").read_bytes()
    assert excerpt in refused(*RESUME)[0]
    assert (Path("x/run.json").read_bytes(), Path("x/summary.json").read_bytes()) == (record, summary)


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (torch.zeros(3, 3), "its shape is [1, 1], in the run [3, 3]"),
        (torch.zeros(1).expand(10**12), "its shape is [1, 1], in the run [1000000000000]"),
        (torch.zeros(1, 1, dtype=torch.int64), "the run has no numbers for it"),
        (torch.zeros(1, 1).to_sparse(), "the run has no numbers for it"),
        (torch.zeros(1, 1, dtype=torch.complex64), "the run has no numbers for it"),
    ],
    ids=["shape", "expanded", "integers", "sparse", "complex"],
)
def test_a_sealed_state_of_another_form_is_no_start(
    weight: torch.Tensor, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load("x/checkpoints/step_4/state.pt", weights_only=True)
    state["model"].update({"weight": weight, "\x1b[2Jname": torch.zeros(1)})
    seal(saved(state))
    assert main(START) == 0
    line = f"start    1 of 2 parameters from x, step 4; new: `weight` ({reason}); not used: \\x1b[2Jname"
    assert line in capsys.readouterr().out.splitlines()


def test_a_start_that_is_not_finite_is_refused(refused: Refused) -> None:
    state = torch.load("x/checkpoints/step_4/state.pt", weights_only=True)
    state["model"]["weight"].fill_(torch.nan)
    seal(saved(state))
    assert refused(*START) == [
        "`model.init_from` must have finite parameters, got others of 'x' in `weight`; use another run"
    ]


def test_a_compressed_state_is_not_unpacked(refused: Refused) -> None:
    content = saved({"step": 4, "weight": torch.zeros(10_000_000)})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target, zipfile.ZipFile(io.BytesIO(content)) as source:
        for entry in source.namelist():
            target.writestr(entry, source.read(entry))
    assert len(packed.getvalue()) < 100_000
    seal(packed.getvalue())
    assert "without compression" in refused(*RESUME)[0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"op_code": 99}\n', "Should not reach."),
        (b"[1]\n", "list indices must be integers or slices, not str"),
        (b"[" * 100_000 + b"\n", "maximum recursion depth exceeded"),
        (b'{"op_code": 0}\n', "'study_name'"),
        ("a FIFO", "it is a FIFO"),
        ("a device", "it is a link"),
        ("30 GB", "its last line has more than 1 MiB"),
    ],
)
def test_a_strange_journal_is_refused(content: bytes | str, reason: str, refused: Refused) -> None:
    pytest.importorskip("optuna")
    if isinstance(content, str):
        put(content, Path("journal"))
    else:
        Path("journal").write_bytes(content)
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.storage=journal"]
    (problem,) = refused("-m", *RUN[:1], *search, "optimizer.lr=interval(0.0001,0.001)", "run_dir=y")
    start = "`hydra.sweeper.storage` must be a journal of Optuna, or a new file, got journal, which cannot be used ("
    assert problem.startswith(start + reason)
    assert not Path("y").exists()
