"""Datasets are split, scaled and cast, and refused if the dtype cannot represent them."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import statistics
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runner.config import schema as c
from runner.config.compose import compose
from runner.data import casting, encoding
from runner.data import dataset as data
from runner.data.dataset import Dataset
from runner.errors import DataError

CPU = torch.device("cpu")
NO_SPLIT = compose(["data=line"]).config.data.split
SPLIT = dataclasses.replace(NO_SPLIT, test=2, valid=2)
COMMON: dict[str, Any] = {
    "seed": None,
    "log_target": False,
    "standardize": False,
    "numbers": None,
    "target_scale": None,
    "split": SPLIT,
}
LINE = c.Line(
    name="line", features=2, slope=2.0, intercept=3.0, rows=12, start=0.0, stop=1.0, noise=0.5,
    noise_distribution="uniform", **COMMON,
)  # fmt: skip


def _build(config: Any, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> Dataset:
    return data.build(dataclasses.replace(config, **changes), seed, dtype, CPU)


def _csv(path: Path, text: str, **changes: Any) -> c.Csv:
    path.joinpath("f.csv").write_text(text)
    detected = dict.fromkeys(("delimiter", "decimal", "encoding", "comment", "header"))
    table = {"sigma": None, "sigma_kind": "relative", "weight": None, "drop": (), "categorical": "auto", "dates": "seconds", "missing": "error", "missing_values": (), "skip_rows": 0, **detected}  # fmt: skip
    options: dict[str, Any] = {**COMMON, "split": dataclasses.replace(NO_SPLIT, order="sequential"), **table, **changes}
    return c.Csv(
        name="csv",
        path=str(path / "f.csv"),
        valid_path=None,
        test_path=None,
        target="y",
        features=None,
        rename={},
        **options,
    )


def _same(one: Dataset, other: Dataset) -> bool:
    return all(
        torch.equal(value, other_value)
        for name in one.parts
        for value, other_value in zip(_tensors(one, name), _tensors(other, name), strict=True)
    )


def _tensors(dataset: Dataset, part: str) -> list[torch.Tensor]:
    rows = dataset.parts[part]
    return [rows.all.numbers, rows.all.target, rows.source]


def test_parts_have_the_rows_of_the_source_and_their_numbers(tmp_path: Path) -> None:
    text = "x,y\n" + "".join(f"{i},{i * i}\n" for i in range(12))
    dataset = _build(_csv(tmp_path, text, split=SPLIT), seed=3, dtype=torch.float32)
    assert {name: len(rows) for name, rows in dataset.parts.items()} == {"train": 8, "valid": 2, "test": 2}
    for rows in dataset.parts.values():
        assert rows.all.numbers.dtype == rows.all.target.dtype == torch.float32
        assert rows.all.numbers[:, 0].tolist() == rows.source.tolist()
        assert rows.all.target.tolist() == [[float(number * number)] for number in rows.source.tolist()]
    assert dataset.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert (dataset.feature_names, dataset.target_names) == (("x",), ("y",))


def test_a_part_without_rows_is_left_out() -> None:
    assert set(_build(LINE, split=dataclasses.replace(NO_SPLIT, valid=3)).parts) == {"train", "valid"}


def test_rows_are_taken_by_number_or_by_slice() -> None:
    rows = _build(LINE).parts["train"]
    taken = rows.take(torch.tensor([4, 1]))
    assert torch.equal(taken.numbers, rows.all.numbers[[4, 1]])
    assert torch.equal(taken.target, rows.all.target[[4, 1]])
    assert taken.weight is taken.categories is None
    assert rows.take(slice(None)) is rows.all
    assert torch.equal(rows.take(slice(2, 5)).numbers, rows.all.numbers[2:5])


def test_the_seed_changes_data_and_split() -> None:
    assert _same(_build(LINE, seed=4), _build(LINE, seed=4))
    one, other = _build(LINE, seed=4), _build(LINE, seed=5)
    assert not _same(one, other)
    assert one.parts["test"].source.tolist() != other.parts["test"].source.tolist()


@pytest.mark.parametrize("data_seed", [0, 9])
def test_data_seed_fixes_data_and_split_when_the_seed_changes(data_seed: int) -> None:
    # 0 is a valid seed, not a missing one.
    config = dataclasses.replace(LINE, seed=data_seed)
    assert _same(_build(config, seed=4), _build(config, seed=5))
    assert _same(_build(config, seed=4), _build(LINE, seed=data_seed))
    assert not _same(_build(config, seed=4), _build(LINE, seed=4))


def test_float32_data_are_the_rounded_float64_data() -> None:
    wide, narrow = _build(LINE, standardize=True), _build(LINE, dtype=torch.float32, standardize=True)
    for name, rows in wide.parts.items():
        assert torch.equal(rows.all.numbers.float(), narrow.parts[name].all.numbers)
        assert torch.equal(rows.all.target.float(), narrow.parts[name].all.target)


def test_data_are_standardized_by_the_training_rows_only() -> None:
    dataset = _build(LINE, standardize=True)
    raw = _build(LINE)
    train = dataset.parts["train"]
    zeros = torch.zeros(2, dtype=torch.float64)
    # Eight numbers near 1 each: their sum is 0 up to a few roundings.
    torch.testing.assert_close(train.all.numbers.mean(0), zeros, rtol=0, atol=1e-15)
    torch.testing.assert_close(train.all.numbers.std(0), zeros + 1, rtol=1e-14, atol=0)
    assert dataset.parts["valid"].all.numbers.mean(0).abs().min() > 1e-3
    undone = dataset.scaling.undo(dataset.parts["valid"].all.target)
    torch.testing.assert_close(undone, raw.parts["valid"].all.target, rtol=1e-14, atol=0)


def test_log_target_trains_on_the_logarithm(tmp_path: Path) -> None:
    dataset = _build(_csv(tmp_path, "x,y\n1,1\n2,10\n3,100\n", log_target=True))
    logs = [math.log(value) for value in (1, 10, 100)]
    # The logarithms of libm and torch may differ in the last place.
    torch.testing.assert_close(
        dataset.parts["train"].all.target.flatten(), torch.tensor(logs, dtype=torch.float64), rtol=1e-15, atol=0
    )
    assert dataset.parts["train"].all.numbers.tolist() == [[1.0], [2.0], [3.0]]


def test_log_target_refuses_a_target_that_is_not_positive(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        _build(_csv(tmp_path, "x,y\n1,1\n2,0\n3,-4.5\n", log_target=True))
    assert caught.value.problems == (
        "`data.log_target` needs a target above 0, got 0 for 'y' in row 2 (2 such rows); "
        "remove those rows or use data.log_target=false",
    )


def test_integers_that_the_dtype_would_round_are_refused(tmp_path: Path) -> None:
    config = _csv(tmp_path, "x,y\n1,1\n16777217,2\n")  # 2²⁴ + 1
    with pytest.raises(
        DataError,
        match=r"^`dtype` must represent column 'x', but float32 .* 16777217 .*subtract an offset from the column$",
    ):
        _build(config, dtype=torch.float32)
    assert _build(config).parts["train"].all.numbers.tolist() == [[1.0], [16777217.0]]


def test_standardizing_brings_numbers_into_the_range_of_the_dtype(tmp_path: Path) -> None:
    config = _csv(tmp_path, "x,y\n1e39,1\n2e39,2\n3e39,3\n")
    with pytest.raises(DataError, match="`dtype` must represent column 'x'"):
        _build(config, dtype=torch.float32)
    assert _build(config, dtype=torch.float32, standardize=True).parts["train"].all.numbers.tolist() == [[-1], [0], [1]]


def test_synthetic_numbers_beyond_the_dtype_are_refused() -> None:
    with pytest.raises(DataError, match=r"^`dtype` must represent column 'y', but float16 cannot represent"):
        _build(LINE, dtype=torch.float16, slope=1e6)


def test_features_beyond_the_dtype_are_refused_with_log_target_too(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        _build(_csv(tmp_path, "x,y\n1e39,1\n2,2\n", log_target=True), dtype=torch.float32)
    assert caught.value.problems == (
        "`dtype` must represent column 'x', but float32 cannot represent 1e+39 in row 1; use a larger unit for the column",
    )


def test_the_offset_is_removed_in_float64_before_the_cast(tmp_path: Path) -> None:
    times = [1.7e9 + 0.25 * i for i in range(40)]
    config = _csv(tmp_path, "t,y\n" + "".join(f"{t!r},{i % 7}\n" for i, t in enumerate(times)))
    with pytest.raises(
        DataError, match=r"^`dtype` must represent column 't', but float32 keeps only 1 of its 40 distinct"
    ):
        _build(config, dtype=torch.float32)
    dataset = _build(config, dtype=torch.float32, standardize=True)
    steps = dataset.parts["train"].all.numbers[:, 0].diff()
    # Evenly spaced again, up to the rounding of numbers near 1 to 24 bits.
    expected = torch.full_like(steps, 0.25 / statistics.stdev(times))
    torch.testing.assert_close(steps, expected, rtol=1e-5, atol=0)
    assert dataset.warnings == ()


def test_a_rounded_column_is_a_warning_of_the_dataset(tmp_path: Path) -> None:
    config = _csv(tmp_path, "t,y\n" + "".join(f"{2459000.25 + 1.1 * i!r},{i % 7}\n" for i in range(40)))
    (warning,) = _build(config, dtype=torch.float32).warnings
    assert warning.startswith("`dtype` rounds column 't': float32 rounds 2459")
    assert _build(config).warnings == ()


def test_diabetes_is_the_shipped_file() -> None:
    dataset = _build(
        c.Diabetes(name="diabetes", **{**COMMON, "split": dataclasses.replace(NO_SPLIT, order="sequential")})
    )
    shipped = resources.files("runner.data").joinpath("diabetes.csv").read_bytes()
    assert dataset.sha256 == hashlib.sha256(shipped).hexdigest()
    assert dataset.parts["train"].all.numbers.shape == (442, 10)
    assert dataset.parts["train"].all.target.shape == (442, 1)


def test_a_mean_beyond_float64_does_not_advise_float64(tmp_path: Path) -> None:
    config = _csv(tmp_path, "x,y\n1.7e308,1\n1.6e308,2\n1.5e308,3\n")
    with pytest.raises(DataError) as caught:
        _build(config, standardize=True)
    assert caught.value.problems == (
        "`data.standardize` must be false for data whose mean or standard deviation float64 cannot represent; use a larger unit",
    )
    assert len(_build(config).parts["train"]) == 3


def test_columns_are_scaled_as_one_matrix_was() -> None:
    """Runs of older versions keep their bits."""
    whole = dataclasses.replace(
        LINE, features=37, rows=3001, split=dataclasses.replace(NO_SPLIT, test=0, valid=0, order="sequential")
    )
    matrix = _build(whole).parts["train"].all.numbers
    scaled = _build(whole, standardize=True).parts["train"].all.numbers
    assert torch.equal(scaled, (matrix - matrix.mean(0)) / matrix.std(0))


@pytest.mark.parametrize("standardize", [False, True])
def test_blocks_of_columns_give_what_all_columns_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, standardize: bool
) -> None:
    rows = [f"{i % 5},{'ab'[i % 2]},{i * 0.25},{'' if i % 3 == 1 else i},{i % 7}" for i in range(12)]
    config = _csv(tmp_path, "a,kind,b,c,y\n" + "\n".join(rows), missing="mean", split=SPLIT, standardize=standardize)
    whole = _build(config)
    assert whole.feature_names == ("a", "kind=a", "kind=b", "b", "c", "c missing")
    monkeypatch.setattr(encoding, "BLOCK_BYTES", 1)
    one_by_one = _build(config)
    for name, rows_of_part in whole.parts.items():
        for values, others in zip(rows_of_part.all[:2], one_by_one.parts[name].all[:2], strict=True):
            # A sum of eight numbers in another order.
            torch.testing.assert_close(values, others, rtol=1e-14, atol=1e-15)


COLUMNS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda random, rows: random.standard_normal(rows),
    "offset": lambda random, rows: 2e9 + random.random(rows),
    "julian": lambda random, rows: 2_459_000 + 60 * random.random(rows),
    "two values": lambda random, rows: random.integers(0, 2, rows) + 0.5,
    "constant": lambda random, rows: np.full(rows, 0.1),
    "counts": lambda random, rows: random.integers(0, 9, rows),
    "large counts": lambda random, rows: 2**24 + random.integers(0, 2, rows) * 2**12 + 1,
    "tiny": lambda random, rows: 1e-9 * random.random(rows) + random.integers(0, 2, rows),
    "very tiny": lambda random, rows: 1e-50 * random.random(rows),
    "near": lambda random, rows: 1 + 1e-8 * random.integers(0, 9, rows),
    "large": lambda random, rows: 1e5 * random.standard_normal(rows),
    "huge": lambda random, rows: 1e39 * random.standard_normal(rows),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kinds", [list(COLUMNS), list(COLUMNS)[:6], ["normal", "julian", "two values"]])
def test_columns_that_are_cast_together_are_those_that_are_cast_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, kinds: list[str]
) -> None:
    random, outcomes = np.random.default_rng(len(kinds)), list[object]()
    for rows in (2, 5, 40):
        columns = {f"{kind} {i}": COLUMNS[kind](random, rows).astype(object) for kind in kinds for i in range(3)}
        columns[f"{kinds[0]} 0"][0] = ""
        lines = zip(*columns.values(), range(rows), strict=True)
        text = ",".join([*columns, "y"]) + "\n" + "".join(",".join(map(str, line)) + "\n" for line in lines)
        configs = [_csv(tmp_path, text, missing="mean", standardize=standardize) for standardize in (False, True)]
        for together in (2**20, 1):
            monkeypatch.setattr(casting, "LARGE", together)
            outcomes.append([_outcome(config, dtype) for config in configs])
    assert outcomes[::2] == outcomes[1::2]
    assert dtype == torch.float64 or any("`dtype`" in str(outcome) for outcome in outcomes)


def _outcome(config: c.Csv, dtype: torch.dtype) -> object:
    """Return the bits and the warnings of a dataset, or why it is refused."""
    try:
        dataset = _build(config, dtype=dtype)
    except DataError as error:
        return error.problems
    return [rows.all.numbers.double().numpy().tobytes() for rows in dataset.parts.values()], dataset.warnings


def test_the_mean_of_large_numbers_is_filled_in(tmp_path: Path) -> None:
    dataset = _build(_csv(tmp_path, "x,y\n1.5e308,1\n,2\n1.6e308,3\n", missing="mean"))
    assert dataset.parts["train"].all.numbers[:, 0].tolist() == [1.5e308, 1.55e308, 1.6e308]


# Rows keep their numbers where others are left out


@pytest.mark.parametrize(
    ("text", "options", "problem"),
    [
        ("x,y\n,1\n2,1\n3,0\n", {"log_target": True}, "`data.log_target` needs a target above 0, got 0 for 'y' in row 3 (1 such rows); "),
        ("x,y\n,1\n2,1\n16777217,0\n", {}, "`dtype` must represent column 'x', but float32 cannot represent the integer 16777217 exactly in row 3; "),
        ("x,y,s\n,1,1\n2,1,1\n3,0,-1\n", {"sigma": "s"}, "`data.sigma` must be above 0 in every row, got -1 in row 3 (1 such rows); "),
        ("x,y,s\n,1,1\n2,1,1\n3,0,-1\n", {"weight": "s"}, "`data.weight` must not be below 0 in any row, got -1 in row 3 (1 such rows); "),
        ("x,y,s\n,1,1\n2,1,1\n3,0,1e-50\n", {"weight": "s"}, "`dtype` must hold the weight of every row, but float32 turns 2e-50 of row 3, relative "),
    ],
    ids=["logarithm", "integers", "sigma", "weight", "weight that is lost"],
)  # fmt: skip
def test_messages_name_the_rows_of_the_file(tmp_path: Path, text: str, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError) as caught:
        _build(_csv(tmp_path, text, missing="drop", **options), dtype=torch.float32)
    assert [found[: len(problem)] for found in caught.value.problems] == [problem]


def test_columns_and_weights_that_are_lost_are_named_together(tmp_path: Path) -> None:
    config = _csv(tmp_path, "x,y,s\n1,1e39,1\n1e39,1,1e30\n", sigma="s")
    with pytest.raises(DataError) as caught:
        _build(config, dtype=torch.float32)
    assert [problem.partition(";")[0] for problem in caught.value.problems] == [
        "`dtype` must represent column 'x', but float32 cannot represent 1e+39 in row 2",
        "`dtype` must represent column 'y', but float32 cannot represent 1e+39 in row 1",
        "`dtype` must hold the weight of every row, but float32 turns 2e-60 of row 2, relative to the mean weight, into 0",
    ]
