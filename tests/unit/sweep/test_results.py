"""The results of a sweep: collected from its directory, one row per member, and one per setting."""

from __future__ import annotations

import csv
import io
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy import stats

from runner.errors import CheckpointError
from runner.runs.atomic import write_json
from runner.sweep.results import Member, Results, Setting, collect, settings, table, write_csv

INF, NAN = math.inf, math.nan
SHA = "ab" * 32


def entry(number: int, values: Mapping[str, Any], state: str = "finished", reason: str | None = None) -> dict[str, Any]:
    return {"number": number, "values": values, "overrides": [], "config_hash": "c", "state": state, "reason": reason}


def summary(metrics: Mapping[str, float], **others: Any) -> dict[str, Any]:
    timing = {"seconds": 0.25, "steps_per_second": 8000.0, "startup_seconds": 1.0}
    return {"steps": 2000, "metrics": metrics, "parameters_sha256": SHA, "timing": timing} | others


def write(path: Path, entries: Sequence[Mapping[str, Any]], summaries: Mapping[int, Any], **record: Any) -> Path:
    """Write a sweep directory as the launcher leaves it."""
    full = {"name": "linreg", "task": [], "status": "finished", "swept": ["optimizer.lr", "seed"], "metric": None}
    write_json(path / "sweep.json", full | {"directions": None, "members": entries} | record)
    for item in entries:
        (path / str(item["number"])).mkdir()
    for number, content in summaries.items():
        write_json(path / str(number) / "summary.json", content)
    return path


def results(rows: Sequence[tuple[Any, ...]], swept: Sequence[str] = ("optimizer.lr", "seed"), **named: Any) -> Results:
    """Make results from rows of swept values, with the metric, or the state of an unfinished member, at the end."""
    members = []
    for number, (*values, last) in enumerate(rows):
        at = dict(zip(swept, values, strict=True))
        if isinstance(last, str):
            members.append(Member(number, at, last))
        else:
            metrics = last if isinstance(last, dict) else {"valid/rmse": last}
            members.append(Member(number, at, "finished", None, 10, metrics, 0.5, SHA))
    given: dict[str, Any] = {"name": "linreg", "metric": "valid/rmse", "larger_is_better": False} | named
    return Results(swept=swept, members=members, **given)


def shown(results: Results) -> list[str]:
    text = io.StringIO()
    Console(width=160, file=text).print(table(results))
    return [re.sub(r" {2,}", "  ", line.strip()) for line in text.getvalue().splitlines()]


# ----------------------------------------------------------------------------------------------------------- collecting


def test_members_are_collected_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    entries = [
        entry(10, {"optimizer.lr": 0.1, "seed": 1}, "failed", "the loss became nan at step 7"),
        entry(2, {"optimizer.lr": 0.01, "seed": 1}),
        entry(0, {"optimizer.lr": 0.01, "seed": 0}),
        entry(1, {"optimizer.lr": 0.1, "seed": 0}, "pruned"),
        entry(3, {"optimizer.lr": 1.0, "seed": 0}, "waiting"),
    ]
    found = collect(write(tmp_path, entries, {0: summary({"train/rmse": 0.5}), 2: summary({"train/rmse": 0.25})}))
    assert (found.name, list(found.swept)) == ("linreg", ["optimizer.lr", "seed"])
    assert found.members == [
        Member(0, {"optimizer.lr": 0.01, "seed": 0}, "finished", None, 2000, {"train/rmse": 0.5}, 0.25, SHA),
        Member(1, {"optimizer.lr": 0.1, "seed": 0}, "pruned"),
        Member(2, {"optimizer.lr": 0.01, "seed": 1}, "finished", None, 2000, {"train/rmse": 0.25}, 0.25, SHA),
        Member(3, {"optimizer.lr": 1.0, "seed": 0}, "waiting"),
        Member(10, {"optimizer.lr": 0.1, "seed": 1}, "failed", "the loss became nan at step 7"),
    ]
    assert found.counts == "5 trials, 1 pruned, 1 waiting, 1 failed"


def test_non_finite_numbers_are_floats_again(tmp_path: Path) -> None:
    metrics = {"train/loss": INF, "train/rmse": NAN, "train/r2": -INF}
    entries = [entry(0, {"train.clip_norm": INF, "model": "nano"})]
    (member,) = collect(write(tmp_path, entries, {0: summary(metrics)}, swept=["train.clip_norm", "model"])).members
    assert member.values == {"train.clip_norm": INF, "model": "nano"}
    assert repr(member.metrics) == repr(metrics)


def test_only_a_finished_member_has_results(tmp_path: Path) -> None:
    entries = [entry(0, {}, "interrupted"), entry(1, {}, "running"), entry(2, {}, "failed", "lost its device")]
    content = summary({"train/rmse": 0.5})  # of an earlier, shorter run
    found = collect(write(tmp_path, entries, {0: content, 1: content, 2: content}, swept=[]))
    assert [(m.state, m.steps, m.metrics) for m in found.members] == [
        ("interrupted", None, {}),
        ("running", None, {}),
        ("failed", None, {}),
    ]
    assert (found.metric, found.metrics) == ("", [])


def test_a_missing_or_damaged_summary_is_reported_and_the_others_are_read(tmp_path: Path) -> None:
    broken: dict[int, Any] = {
        1: [],
        2: summary({}) | {"metrics": 3},
        3: summary({}, timing=None),
        4: summary({}, steps="many"),
        5: {"steps": 1},
        6: summary({"train/rmse": 2.0}),
    }
    write(tmp_path, [entry(number, {}) for number in range(9)], broken, swept=[])
    (tmp_path / "7" / "summary.json").write_bytes(b'{"steps": 20')
    (tmp_path / "8" / "summary.json").write_bytes(b"\xff\xfe\x00")
    found = collect(tmp_path).members
    assert [member.state for member in found] == ["unreadable"] * 6 + ["finished"] + ["unreadable"] * 2
    assert [(member.steps, member.metrics, member.failed) for member in found[:6]] == [(None, {}, True)] * 6
    path = tmp_path / "0" / "summary.json"
    assert found[0].reason == (
        f"{path} must be the summary of a run, but cannot be read (No such file or directory); restore it"
    )
    damaged = f"{tmp_path / '7' / 'summary.json'} must be the summary of a run, but cannot be read (it is not JSON: "
    assert str(found[7].reason).startswith(damaged)
    assert found[4].reason == (
        f"{tmp_path / '4' / 'summary.json'}: `steps` must be an integer of at least 0, got 'many'; restore the file"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, " must be the manifest of a sweep, but cannot be read (No such file or directory); restore it"),
        (b"{", " must be the manifest of a sweep, but cannot be read (it is not JSON: Expecting property name"),
        (b"\xff", " must be the manifest of a sweep, but cannot be read (it is not UTF-8); restore it"),
        (b"[]", " must be the manifest of a sweep, but cannot be read (it is not an object); restore it"),
        (b'{"name": "a", "swept": []}', ": `task` is missing; it must be a list, each item a string"),
        (b'{"name": "a", "task": []}', ": `members` must be a list of trials, got null; restore the file"),
        (b'{"name": "a", "task": [], "members": [{"number": 0}]}', ": `members.0.state` is missing; it must be one of"),
    ],
)
def test_a_directory_without_a_readable_record_is_refused(content: bytes | None, problem: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "sweep.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        collect(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'sweep.json'}{problem}")


@pytest.mark.parametrize(
    ("names", "record", "expected"),
    [
        (["train/rmse", "test/rmse", "valid/rmse"], {}, ("valid/rmse", False)),
        (["train/rmse", "test/rmse"], {}, ("test/rmse", False)),
        (["train/loss", "train/rmse", "train/r2"], {}, ("train/rmse", False)),
        (["train/loss", "train/r2"], {}, ("train/loss", False)),
        (["train/r2"], {}, ("train/r2", True)),
        (["train/rmse", "valid/rmse"], {"metric": "train/rmse", "directions": ["minimize"]}, ("train/rmse", False)),
        (["train/rmse"], {"metric": "train/rmse", "directions": ["maximize"]}, ("train/rmse", True)),
        (["test/r2"], {"metric": "test/r2"}, ("test/r2", True)),
        (["a"], {"metric": ["test/mae", "test/r2"], "directions": ["minimize", "maximize"]}, ("test/mae", False)),
    ],
)
def test_the_metric_of_the_search_or_rmse_compares_members(
    names: list[str], record: dict[str, Any], expected: tuple[str, bool], tmp_path: Path
) -> None:
    found = collect(write(tmp_path, [entry(0, {})], {0: summary(dict.fromkeys(names, 1.0))}, swept=[], **record))
    assert (found.metric, found.larger_is_better) == expected


# --------------------------------------------------------------------------------------------------- one row per member


def test_the_csv_has_a_row_per_member_and_reads_back_equal(tmp_path: Path) -> None:
    metrics = {"test/r2": -INF, "valid/mae": 0.1 + 0.2, "train/rmse": 5e-324, "train/loss": NAN, "other": 1e300}
    given = results(
        [(1 / 3, 0, metrics), (1e-05, 12, {"train/loss": 2.0, "test/r2": INF}), (0.1, 1, "failed"), (0.1, 2, "waiting")]
    )
    path = tmp_path / "results.csv"
    write_csv(given, path)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = ["train/loss", "train/rmse", "valid/mae", "test/r2", "other"]
    assert list(rows[0]) == [
        *("number", "state", "optimizer.lr", "seed", "steps"),
        *names,
        *("seconds", "parameters_sha256"),
    ]
    assert [(row["number"], row["state"]) for row in rows] == [
        ("0", "finished"),
        ("1", "finished"),
        ("2", "failed"),
        ("3", "waiting"),
    ]
    assert [(float(row["optimizer.lr"]), int(row["seed"])) for row in rows] == [
        (1 / 3, 0),
        (1e-05, 12),
        (0.1, 1),
        (0.1, 2),
    ]
    assert [float(rows[0][name]) for name in names[1:]] == [metrics[name] for name in names[1:]]
    assert (rows[0]["train/loss"], rows[0]["test/r2"], rows[1]["test/r2"]) == ("nan", "-inf", "inf")
    assert (rows[1]["train/rmse"], rows[2]["steps"], rows[2]["seconds"], rows[2]["parameters_sha256"]) == ("",) * 4
    assert (rows[0]["steps"], rows[0]["seconds"], rows[0]["parameters_sha256"]) == ("10", "0.5", SHA)


def test_swept_values_are_written_as_on_the_command_line(tmp_path: Path) -> None:
    values = {"model.widths": [8, 8], "train.batch_size": None, "data.standardize": True, "model": 'a "b", ü'}
    given = Results("x", [*values, "absent"], [Member(0, values, "waiting")], "", False)
    write_csv(given, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        _, row = csv.reader(file)
    assert row == ["0", "waiting", "[8, 8]", "null", "true", 'a "b", ü', "", "", "", ""]


def test_the_csv_says_which_fits_converged_where_that_is_known(tmp_path: Path) -> None:
    members = [
        Member(number, {"seed": number}, "finished", None, 10, {"valid/rmse": 1.0}, 0.5, SHA, converged)
        for number, converged in enumerate([True, False, None])
    ]
    given = Results("x", ["seed"], members, "valid/rmse", False)
    write_csv(given, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        assert [row["converged"] for row in csv.DictReader(file)] == ["true", "false", ""]
    assert shown(given)[1:] == [
        "n  failed  converged  metric  mean ± 95 % interval  sd",
        "3  0  1  valid/rmse  1 ± 0  0",
    ]


def test_the_csv_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write_csv(results([(0.1, 0, 1.0), (0.1, 1, 2.0)]), path)
    write_csv(results([(0.1, 0, 1.0)]), path)
    assert path.read_bytes() == (
        f"number,state,optimizer.lr,seed,steps,valid/rmse,seconds,parameters_sha256\n0,finished,0.1,0,10,1.0,0.5,{SHA}\n".encode()
    )
    assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]


# -------------------------------------------------------------------------------------------------- one row per setting


def test_settings_ignore_the_seeds_and_the_best_is_first() -> None:
    rows = [
        (0.1, 0, 0, 3.0),
        (0.2, 0, 0, 1.0),
        (0.1, 1, 5, 5.0),
        (0.2, 1, 5, "failed"),
        (0.3, 0, 0, "pruned"),
        (0.4, 0, 0, NAN),
        (0.2, 2, 5, 2.0),
    ]
    found = settings(results(rows, ["optimizer.lr", "seed", "data.seed"]))
    assert [setting.values for setting in found] == [{"optimizer.lr": lr} for lr in (0.2, 0.1, 0.3, 0.4)]
    assert [[member.number for member in setting.members] for setting in found] == [[1, 3, 6], [0, 2], [4], [5]]
    assert [(len(setting.finished), setting.failed) for setting in found] == [(2, 1), (2, 0), (0, 0), (1, 0)]
    assert [setting.estimate("valid/rmse").mean for setting in found[:2]] == [1.5, 4.0]
    assert found[0].estimate("train/rmse").count == 0


def test_the_largest_is_first_if_larger_is_better() -> None:
    rows = [(0.1, 0, 0.5), (0.2, 0, 0.9), (0.3, 0, -INF), (0.4, 0, NAN)]
    found = settings(results(rows, larger_is_better=True))
    assert [setting.values["optimizer.lr"] for setting in found] == [0.2, 0.1, 0.3, 0.4]


def test_values_of_every_kind_make_settings() -> None:
    kinds: list[Any] = [[8, 8], [8], None, True, "true", 1, "a"]
    given = results([(kind, seed, 1.0) for seed in range(2) for kind in kinds], ["k", "seed"])
    assert [(setting.values["k"], len(setting.finished)) for setting in settings(given)] == [
        (kind, 2) for kind in kinds
    ]


def test_seeds_without_other_keys_are_one_setting() -> None:
    (found,) = settings(results([(seed, float(seed)) for seed in range(5)], ["seed"]))
    assert (found.values, found.estimate("valid/rmse").mean) == ({}, 2.0)


def test_the_same_seed_twice_counts_once() -> None:
    (found,) = settings(results([(0.1, 0, 1.0), (0.1, 1, 2.0), (0.1, 0, 7.0), (0.1, 1, "failed")]))
    assert found.estimate("valid/rmse").count == 2
    assert found.estimate("valid/rmse").mean == 1.5


def test_settings_are_compared_seed_by_seed() -> None:
    ours, theirs = [1.0, 2.5, 3.0, 4.5], [0.5, 1.0, 2.5, 2.0]
    rows: list[tuple[Any, ...]] = [(0.1, seed, value) for seed, value in enumerate(ours)]
    rows += [(0.2, seed, value) for seed, value in reversed(list(enumerate(theirs)))]
    rows += [(0.1, 8, 99.0), (0.2, 8, "failed"), (0.2, 9, -99.0)]  # not in both
    best, other = settings(results(rows))
    found = other.minus(best, "valid/rmse")
    expected = stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.95)
    assert found.count == 4
    assert found.mean == sum(ours) / 4 - sum(theirs) / 4
    assert (found.low, found.high) == pytest.approx(
        (interval.low, interval.high), rel=1e-11
    )  # the accuracy of the quantile


def test_settings_without_a_common_seed_are_not_compared() -> None:
    one, two = (Setting({}, [Member(0, {"seed": seed}, "finished", metrics={"a": 1.0})]) for seed in (0, 1))
    assert one.minus(two, "a").count == 0
    assert one.minus(one, "b").count == 0


# ------------------------------------------------------------------------------------------------------------ the table


def test_a_small_table_has_every_metric() -> None:
    rows = [
        (0.01, 0, {"train/rmse": 1.0, "valid/rmse": 2.0}),
        (0.01, 1, {"train/rmse": 2.0, "valid/rmse": 4.0}),
        (0.1, 0, {"train/rmse": 1.0, "valid/rmse": 1.0}),
        (0.1, 1, {"train/rmse": 1.0, "valid/rmse": 2.0}),
        (1.0, 0, "failed"),
        (1.0, 1, {"train/rmse": 5.0, "valid/rmse": 6.0}),
    ]
    assert shown(results(rows)) == [
        "linreg: 6 trials, 1 failed",
        "optimizer.lr  n  failed  metric  mean ± 95 % interval  sd  minus best ± 95 %  pairs",
        "0.1  2  0  train/rmse  1 ± 0  0",
        "valid/rmse  1.5 ± 6.4  0.707",
        "0.01  2  0  train/rmse  1.5 ± 6.4  0.707",
        "valid/rmse  3 ± 13  1.41  +1.5 ± 6.4  2",
        "1  1  1  train/rmse  5",
        "valid/rmse  6  +4  1",
        "n = 1: one seed has no interval",
    ]


def test_a_large_table_has_one_metric_and_is_cut() -> None:
    metrics = {f"{part}/{name}": 1.0 for part in ("train", "test") for name in ("loss", "rmse")}
    rows = [(lr, seed, metrics | {"valid/rmse": float(lr)}) for lr in range(23, 0, -1) for seed in range(2)]
    lines = shown(results(rows))
    assert lines[2] == "1  2  0  valid/rmse  1 ± 0  0"
    assert lines[3] == "2  2  0  valid/rmse  2 ± 0  0  +1 ± 0  2"
    assert lines[21:] == ["20  2  0  valid/rmse  20 ± 0  0  +19 ± 0  2", "… and 3 more in results.csv"]


def fitted(lr: float, seed: int, names: str) -> Member:
    """Return a trial of a formula whose parameters are all lr + seed."""
    parameters = {f"param/{name}": lr + seed for name in names}
    metrics = {f"{part}/rmse": lr + seed for part in ("train", "valid")}
    return Member(0, {"optimizer.lr": lr, "seed": seed}, "finished", None, 10, metrics, 0.5, SHA, parameters=parameters)


def test_the_table_has_the_parameters_of_formulas() -> None:
    members = [fitted(lr, seed, names) for lr, names in ((1.0, "ba"), (2.0, "bc")) for seed in (0, 1)]
    assert shown(Results("linreg", ["optimizer.lr", "seed"], members, "valid/rmse", False)) == [
        "linreg: 4 trials",
        "optimizer.lr  n  failed  metric  mean ± 95 % interval  sd  minus best ± 95 %  pairs",
        "1  2  0  train/rmse  1.5 ± 6.4  0.707",
        "valid/rmse  1.5 ± 6.4  0.707",
        "param/b  1.5 ± 6.4  0.707",
        "param/a  1.5 ± 6.4  0.707",
        "param/c",
        "2  2  0  train/rmse  2.5 ± 6.4  0.707",
        "valid/rmse  2.5 ± 6.4  0.707  +1 ± 0  2",
        "param/b  2.5 ± 6.4  0.707",
        "param/a",
        "param/c  2.5 ± 6.4  0.707",
    ]


@pytest.mark.parametrize(("count", "settings"), [(2, 20), (3, 15), (11, 5), (12, 20)])
def test_a_large_table_has_the_parameters_of_as_many_settings_as_fit(count: int, settings: int) -> None:
    members = [fitted(float(lr), 0, "abcdefghijkl"[:count]) for lr in range(1, 24)]
    lines = shown(Results("linreg", ["optimizer.lr", "seed"], members, "valid/rmse", False))
    assert sum("valid/rmse" in line for line in lines) == settings
    assert not any("train/rmse" in line for line in lines)
    assert sum("param/a" in line for line in lines) == (settings if count < 12 else 0)
    assert lines[-2:] == [f"… and {23 - settings} more in results.csv", "n = 1: one seed has no interval"]


def test_results_csv_has_the_parameters_of_formulas(tmp_path: Path) -> None:
    entries = [entry(0, {"seed": 0}), entry(1, {"seed": 1}), entry(2, {"seed": 2})]
    summaries = {
        0: summary({"train/rmse": 0.5}, parameters={"b": 1e-300, "a": 2.0}),
        1: summary({"train/rmse": 0.25}, parameters={"c": 0.1}),
        2: summary({"train/rmse": 0.25}, parameters={"weight": [[3.0]], "bias": [1.0]}),
    }
    write_csv(collect(write(tmp_path, entries, summaries, swept=["seed"])), tmp_path / "results.csv")
    rows = [line.split(",") for line in (tmp_path / "results.csv").read_text(encoding="utf-8").splitlines()]
    assert rows[0] == ["number", "state", "seed", "steps", "train/rmse", "param/b", "param/a", "param/c", "seconds", "parameters_sha256"]  # fmt: skip
    assert [row[4:8] for row in rows[1:]] == [
        ["0.5", "1e-300", "2.0", ""],
        ["0.25", "", "", "0.1"],
        ["0.25", "", "", ""],
    ]


def test_a_table_of_one_setting_has_no_comparison() -> None:
    assert shown(results([(seed, float(seed)) for seed in range(3)], ["seed"])) == [
        "linreg: 3 trials",
        "n  failed  metric  mean ± 95 % interval  sd",
        "3  0  valid/rmse  1 ± 2.5  1",
    ]


def test_a_table_without_results_has_the_failures() -> None:
    members = [Member(4, {"seed": 0}, "unreadable", "4/summary.json is gone"), Member(5, {"seed": 1}, "pruned")]
    assert shown(Results("linreg", ["seed"], members, "", False)) == [
        "linreg: 2 trials, 1 unreadable, 1 pruned",
        "n  failed  metric  mean ± 95 % interval  sd",
        "0  1",
        "4: 4/summary.json is gone",
    ]


def test_names_are_not_read_as_markup() -> None:
    lines = shown(results([("[red]", 0, 1.0), ("[8, 8]", 0, 2.0)], ["model.[bold]", "seed"], name="[blink]"))
    assert lines[0] == "[blink]: 2 trials"
    assert lines[1].startswith("model.[bold]  ")
    assert [line.partition("  ")[0] for line in lines[2:4]] == ["[red]", "[8, 8]"]


def test_reading_results_imports_neither_torch_nor_matplotlib() -> None:
    script = """
import sys
import runner.sweep.results
assert not {"torch", "matplotlib", "numpy", "rich"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
