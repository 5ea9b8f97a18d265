"""Bad commands, values and tables: the exact messages, exit code 2, no traceback, and nothing left behind.

Every case is a command of its own, run in this process. tests/integration/test_bad_inputs.py has commands with several
problems at once, and tests/faults/test_sizes.py those whose size must not be acted on.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from runner.cli import main

QUICK = ["device=cpu", "record.plots=false", "train.steps=2", "optimizer.lr=1e-4"]
WITHOUT_A_RUN = ("verify", "doctor", "rerun", "--resolve")
CPU_SECONDS = 5
LONG = "k" * 100_000
PATH = "a/" * 2500 + "x"
ITEMS = ",".join(["1"] * 10_000)
CSV = ["data=csv", "data.path=t.csv", "data.target=y"]
TEN = "x,y\n" + "".join(f"{i},{2 * i}\n" for i in range(10))

TABLES: dict[str, tuple[dict[str, str | bytes], list[str], list[str]]] = {
    'an empty file': ({'t.csv': ''}, [*CSV], ["`data.path` must have a header and rows, but 't.csv' is empty; use another file"]),
    'a header alone': ({'t.csv': 'x,y\n'}, [*CSV], ["`data.path` must have rows, got a header and 0 rows in 't.csv'; add rows"]),
    'a blank first line': ({'t.csv': '\nx,y\n1,2\n'}, [*CSV], ["`data.path` must start with a header, but 't.csv' starts with a blank line; remove it"]),
    'semicolons': ({'t.csv': 'x,y\n1,2\n3,4\n'}, [*CSV, 'data.delimiter=;'], ["`data.path` must have at least two columns, but with the delimiter ';' 't.csv' has one, 'x,y'; set `data.delimiter`, or leave out a title above the header with `data.skip_rows`"]),
    'tabs': ({'t.csv': 'x\ty\n1\n2\t3\n'}, [*CSV], ["`data.path`: line 2 of 't.csv' must have 2 fields like the header, got 1; add the missing fields"]),
    'bars': ({'t.csv': 'x|y\n1|2|3\n2|3\n'}, [*CSV], ["`data.path`: line 2 of 't.csv' must have 2 fields like the header, got 3; remove or quote the extra fields"]),
    'one column': ({'t.csv': 'y\n1\n'}, [*CSV], ["`data.path` must have at least two columns, but with the delimiter ',' 't.csv' has one, 'y'; set `data.delimiter`, or leave out a title above the header with `data.skip_rows`"]),
    'no header': ({'t.csv': '1,2\n3,4\n'}, [*CSV], ["`data.target` must name a column of 't.csv', got 'y'; the columns are 'column_1', 'column_2'"]),
    'text in a cell': ({'t.csv': 'x,y\n1,2\na,3\n'}, [*CSV], ["`data.path`: line 3 of 't.csv', column 'x', must be a finite number, got 'a', text; use a number, or list it in `data.missing_values`"]),
    'a missing value': ({'t.csv': 'x,y\n1,2\n,3\n4,5\n'}, [*CSV], ["`data.missing`: column 'x' of 't.csv' has 1 missing value (33.3%), in line 3; use data.missing=drop or data.missing=mean"]),
    'NaN': ({'t.csv': 'x,y\n1,2\nNaN,3\n4,5\n'}, [*CSV], ["`data.missing`: column 'x' of 't.csv' has 1 missing value (33.3%), in line 3; use data.missing=drop or data.missing=mean"]),
    'inf': ({'t.csv': 'x,y\n1,2\n-inf,3\n'}, [*CSV], ["`data.path`: line 3 of 't.csv', column 'x', must be a finite number, got '-inf', not finite; correct it, or list it in `data.missing_values`"]),
    '1e400': ({'t.csv': 'x,y\n1,2\n1e400,3\n'}, [*CSV], ["`data.path`: line 3 of 't.csv', column 'x', must be a finite number, got '1e400', beyond the largest float64, 1.8e308; use a larger unit"]),
    'beyond 2**53': ({'t.csv': 'x,y\n1,2\n9007199254740993,3\n'}, [*CSV], ["`data.path`: line 3 of 't.csv', column 'x', must be a finite number, got '9007199254740993', an integer beyond 2**53, which is not exact in float64; use a larger unit or subtract an offset"]),
    'hexadecimal': ({'t.csv': 'x,y\n1,2\n0x10,3\n'}, [*CSV], ["`data.path`: line 3 of 't.csv', column 'x', must be a finite number, got '0x10', hexadecimal; use decimal"]),
    'a percentage': ({'t.csv': 'x,y\n1,2\n5%,3\n'}, [*CSV], ["`data.path`: line 3 of 't.csv', column 'x', must be a finite number, got '5%', a percentage; use a fraction without the sign"]),
    'a date': ({'t.csv': 'x,y\n1,2\n2024-01-31,3\n'}, [*CSV], ["`data.path`: line 3 of 't.csv', column 'x', must be a finite number, got '2024-01-31', a date; write all cells as 2024-01-31, or all as numbers"]),
    'a truth value': ({'t.csv': 'x,y\n1,2\ntrue,3\n'}, [*CSV], ["`data.path`: line 3 of 't.csv', column 'x', must be a finite number, got 'true', a truth value; use 1 and 0"]),
    'underscores': ({'t.csv': 'x,y\n1,2\n1_000,3\n'}, [*CSV], ["`data.path`: line 3 of 't.csv', column 'x', must be a finite number, got '1_000', a number with underscores; remove them"]),
    'a quoted comma': ({'t.csv': 'x,y\n1,2\n"1,5",3\n'}, [*CSV], ["`data.path`: line 3 of 't.csv', column 'x', must be a finite number, got '1,5', a number with a comma; write 1000 for a thousand and 0.5 for a half"]),
    'decimal commas': ({'t.csv': 'x,y\n1,5,2,5\n'}, [*CSV], ["`data.path`: line 2 of 't.csv' must have 2 fields like the header, got 4; write decimals with a point, not a comma"]),
    'an extra field': ({'t.csv': 'x,y\n1,2\n1,2,3\n'}, [*CSV], ["`data.path`: line 3 of 't.csv' must have 2 fields like the header, got 3; remove or quote the extra fields"]),
    'a missing field': ({'t.csv': 'x,y,z\n1,2,3\n1,2\n'}, [*CSV], ["`data.path`: line 3 of 't.csv' must have 3 fields like the header, got 2; add the missing fields"]),
    'a blank line inside': ({'t.csv': 'x,y\n1,2\n\n3,4\n'}, [*CSV], ["`data.path`: line 3 of 't.csv' must have 2 fields like the header, got a blank line; remove it"]),
    'an open quote': ({'t.csv': 'x,y\n1,2\n"3,4\n'}, [*CSV], ["`data.path` must be a table of text, but 't.csv' cannot be parsed at line 3 (unexpected end of data); close every quote, and double quotes inside a field"]),
    'a column twice': ({'t.csv': 'x,x,y\n1,2,3\n'}, [*CSV], ["`data.path` must have distinct column names, got 'x' 2 times in 't.csv'; rename them"]),
    'a column without a name': ({'t.csv': ',x,y\n1,2,3\n'}, [*CSV], ["`data.path` must have names for its columns, but column 1 of 't.csv' has none; give it one, or leave it out with \"data.drop=['']\""]),
    'a target that is absent': ({'t.csv': TEN}, [*CSV, 'data.target=z'], ["`data.target` must name a column of 't.csv', got 'z'; the columns are 'x', 'y'"]),
    'a target in another case': ({'t.csv': TEN}, [*CSV, 'data.target=Y'], ["`data.target` must name a column of 't.csv', got 'Y'; the columns are 'y', 'x' (case and spaces matter)"]),
    'a feature that is absent': ({'t.csv': TEN}, [*CSV, 'data.features=[z]'], ["`data.features` must name a column of 't.csv', got 'z'; the columns are 'x', 'y'"]),
    'a feature twice': ({'t.csv': TEN}, [*CSV, 'data.features=[x,x]'], ["`data.features` must name each column once, got 'x' 2 times; remove the duplicates"]),
    'no feature': ({'t.csv': TEN}, [*CSV, 'data.features=[]'], ["`data.features` must name at least one column, got none of 't.csv'; name one"]),
    'the target among the features': ({'t.csv': TEN}, [*CSV, 'data.features=[y]'], ["`data.features` must not contain the target 'y'; remove it"]),
    'a target of 0 and a logarithm': ({'t.csv': TEN}, [*CSV, 'data.log_target=true'], ["`data.log_target` needs a target above 0, got 0 for 'y' in row 1 (1 such rows); remove those rows or use data.log_target=false"]),
    'more test rows than rows': ({'t.csv': TEN}, [*CSV, 'data.split.test=11'], ['`data.split.test` must leave rows for training, got 11 of 10; use smaller values']),
    'all rows for tests': ({'t.csv': TEN}, [*CSV, 'data.split.test=10'], ['`data.split.test` must leave rows for training, got 10 of 10; use smaller values']),
    'no row for tests': ({'t.csv': TEN}, [*CSV, 'data.split.test=0.01'], ['`data.split.test` must select at least one row, got 0.01 of 10 rows; use a larger value, or 0 for no test rows']),
    'no row for validation': ({'t.csv': TEN}, [*CSV, 'data.split.valid=0.01'], ['`data.split.valid` must select at least one row, got 0.01 of 10 rows; use a larger value, or 0 for no valid rows']),
    'a zero byte': ({'t.csv': 'x,y\n1,2\n\x00,3\n'}, [*CSV], ["`data.path` must be text, but 't.csv' is UTF-16 or binary; save it as UTF-8"]),
    'an integer that float32 rounds': ({'t.csv': 'x,y\n16777217,1\n2,2\n'}, [*CSV, 'dtype=float32'], ["`dtype` must represent column 'x', but float32 cannot represent the integer 16777217 exactly in row 1; use dtype=float64"]),
    'an integer that float32 rounds, with amp': ({'t.csv': 'x,y\n16777217,1\n2,2\n'}, [*CSV, 'dtype=float32', 'amp=bfloat16'], ["`dtype` must represent column 'x', but float32 cannot represent the integer 16777217 exactly in row 1; use dtype=float64 and amp=off"]),
    'a number beyond float32': ({'t.csv': 'x,y\n1e39,1\n2,2\n'}, [*CSV, 'dtype=float32'], ["`dtype` must represent column 'x', but float32 cannot represent 1e+39 in row 1; use dtype=float64"]),
    'a mean beyond float64': ({'t.csv': 'x,y\n1.7e308,1\n1.7e308,2\n1.6e308,3\n'}, [*CSV, 'data.standardize=true', 'dtype=float64'], ['`data.standardize` must be false for data whose mean or standard deviation float64 cannot represent; use a larger unit']),
    'a cell of 100,000 characters': ({'t.csv': 'x,y\n' + LONG + ',1\n1,2\n'}, [*CSV], ["`data.path`: line 2 of 't.csv', column 'x', must be a finite number, got '" + "k" * 40 + "…', text; use a number, or list it in `data.missing_values`"]),
    'a column name of 100,000 characters': ({'t.csv': LONG + ',y\na,1\n1,2\n'}, [*CSV], ["`data.path`: line 2 of 't.csv', column '" + "k" * 40 + "…', must be a finite number, got 'a', text; use a number, or list it in `data.missing_values`"]),
    'Latin-1': ({'t.csv': b'x,y\n1,2\n\xe4,3\n'}, [*CSV, 'data.encoding=utf-8'], ["`data.encoding` must fit 't.csv', but line 3 has the byte 0xe4, which is not in utf-8; use another encoding"]),
    'compressed': ({'t.csv': b'\x1f\x8b\x08\x00'}, [*CSV], ["`data.path` must be a complete file, but 't.csv' cannot be unpacked (Compressed file ended before the end-of-stream marker was reached); copy or pack it again"]),
    'an archive': ({'t.csv': b'PK\x03\x04'}, [*CSV], ["`data.path` must be text, but 't.csv' is an archive; unpack it first (a spreadsheet: save its sheet as CSV)"]),
    'one row': ({'t.csv': 'x,y\n1,2\n'}, [*CSV], ["`data.path` must have at least two rows, got 1 in 't.csv'; add rows"]),
    'no value at all': ({'t.csv': 'x,y\n,1\n,2\n'}, [*CSV], ["`data.features` must have values, but column 'x' of 't.csv' has none; add it to `data.drop`"]),
    'no value at all, filled in': ({'t.csv': 'x,y\n,1\n,2\n'}, [*CSV, 'data.missing=mean'], ["`data.features` must have values in the training rows, but 'x' has none there; add it to `data.drop`"]),
    'no value of a chosen feature': ({'t.csv': 'x,y\n,1\n,2\n'}, [*CSV, 'data.missing=drop', 'data.features=[x]'], ["`data.features` must have values, but column 'x' of 't.csv' has none; remove it from `data.features`"]),
    'no value of the target': ({'t.csv': 'x,y\n1,\n2,\n'}, [*CSV, 'data.missing=drop'], ["`data.target` must have values, but column 'y' of 't.csv' has none; name another column"]),
    'a missing value in every row': ({'t.csv': 'x,z,y\n,1,1\n1,,2\n'}, [*CSV], ["`data.missing`: column 'x' of 't.csv' has 1 missing value (50.0%), in line 2; use data.missing=mean", "`data.missing`: column 'z' of 't.csv' has 1 missing value (50.0%), in line 3; use data.missing=mean"]),
    'a missing target in all but one row': ({'t.csv': 'x,y\n1,\n1,2\n'}, [*CSV], ["`data.missing`: column 'y' of 't.csv' has 1 missing value (50.0%), in line 2; fill them in"]),
    'free text': ({'t.csv': 'x,y\n' + ''.join(f'note {i},{i}\n' for i in range(101))}, [*CSV], ["`data.features`: column 'x' of 't.csv' has 101 distinct values in 101 rows, as free text has; add it to `data.drop`, or to `data.categorical` if they are categories"]),
    'a date of another calendar': ({'t.csv': 'x,y\n0000-01-01,1\n2024-02-29,2\n2024-03-01,3\n'}, [*CSV], ["`data.features`: column 'x' of 't.csv' has dates, but '0000-01-01' is none; correct it, or list it in `data.missing_values`"]),
    'a date after the year 9999': ({'t.csv': 'x,y\n12024-01-01,1\n2024-02-29,2\n2024-03-01,3\n'}, [*CSV], ["`data.features`: column 'x' of 't.csv' has dates, but '12024-01-01' is none; correct it, or list it in `data.missing_values`"]),
    'a text target': ({'t.csv': 'x,y\n1,a\n2,b\n'}, [*CSV], ["`data.path`: line 2 of 't.csv', column 'y' (none of its 2 values is usable), must be a finite number, got 'a', text; use numbers, or another column"]),
    'a date that does not exist': ({'t.csv': 'x,y\n2023-02-29,1\n2024-02-29,2\n'}, [*CSV], ["`data.features`: column 'x' of 't.csv' has dates, but '2023-02-29' is none; correct it, or list it in `data.missing_values`"]),
    'an encoding that does not exist': ({'t.csv': TEN}, [*CSV, 'data.encoding=utf9'], ["`data.encoding` must be the name of a text encoding, got 'utf9'; use utf-8 or cp1252"]),
    'UTF-16 that is none': ({'t.csv': TEN}, [*CSV, 'data.encoding=utf-16'], ["`data.encoding` must fit 't.csv', but line 1 has the byte 0x78, which is not in utf-16; use another encoding"]),
    'a pattern without files': ({}, ['data=csv', 'data.path=*.csv', 'data.target=y'], ["`data.path` must match a file, but nothing has the form '*.csv'; correct the pattern"]),
    'a spreadsheet': ({'t.xlsx': b'PK\x03\x04'}, ['data=csv', 'data.path=t.xlsx', 'data.target=y'], ["`data.path` must be text, but 't.xlsx' is a spreadsheet; save its sheet as CSV"]),
    'no file': ({}, [*CSV], ["`data.path` must be a readable file, but 't.csv' does not exist; give its path with data.path=PATH, relative to the working directory"]),
    'a folder': ({'t.csv/x': ''}, [*CSV], ["`data.path` must be a file or a folder of files, but 't.csv' has none that ends with .csv, .tsv or .txt; give the path of a file"]),
    'a device': ({}, ['data=csv', 'data.path=/dev/zero', 'data.target=y'], ["`data.path` must be a readable file, but '/dev/zero' is not a regular file; give its path with data.path=PATH, relative to the working directory"]),
}  # fmt: skip

COMMANDS: dict[str, list[str]] = {
    'train.epochs=0 train.steps=null': ['`train.epochs` must be an integer of at least 1 or null, got 0'],
    'train.epochs=1.5 train.steps=null': ['`train.epochs` must be an integer of at least 1 or null, got 1.5'],
    'train.eval_every_steps=0': ['`train.eval_every_steps` must be an integer of at least 1 or null, got 0'],
    'train.compile=maybe': ["`train.compile` must be true or false, got 'maybe'"],
    'train.cuda_graph=maybe': ["`train.cuda_graph` must be auto or true or false, got 'maybe'"],
    'train.check_gradients=1': ['`train.check_gradients` must be true or false, got 1'],
    'train.early_stopping.metric=accuracy': ["`train.early_stopping.metric` must be one of loss, rmse, mae, r2, got 'accuracy'; add one of your own to metrics"],
    'train.early_stopping.patience=0': ['`train.early_stopping.patience` must be an integer of at least 1 or null, got 0'],
    'train.early_stopping.min_delta=-1': ['`train.early_stopping.min_delta` must be a finite number of at least 0, got -1'],
    'checkpoint.metric=f1': ["`checkpoint.metric` must be one of loss, rmse, mae, r2 or null, got 'f1'"],
    'checkpoint.async_save=2': ['`checkpoint.async_save` must be true or false, got 2'],
    'checkpoint.keep=0': ['`checkpoint.keep` must be an integer of at least 1 or null, got 0'],
    'record.hash_every_steps=0': ['`record.hash_every_steps` must be an integer of at least 1 or null, got 0'],
    'record.sinks=jsonl': ["`record.sinks` must be a list, each item a string, got 'jsonl'; write record.sinks=[jsonl]"],
    'record.sinks=[]': ['`record.sinks` must include jsonl, which resume and comparisons read, got []; add it'],
    'sweep.max_trials=0': ['`sweep.max_trials` must be an integer from 1 to 1000000, got 0'],
    'sweep.max_trials=1e7': ['`sweep.max_trials` must be an integer from 1 to 1000000, got 10000000.0'],
    'sweep.audit=-1': ['`sweep.audit` must be an integer of at least 0, got -1'],
    'sweep.memory_gib=0': ['`sweep.memory_gib` must be a finite number above 0 or null, got 0'],
    'launch.processes=0': ['`launch.processes` must be an integer from 1 to 1024, got 0'],
    'launch.processes=1025': ['`launch.processes` must be an integer from 1 to 1024, got 1025'],
    'launch.processes=two': ["`launch.processes` must be an integer from 1 to 1024, got 'two'"],
    'launch.nodes=0': ['`launch.nodes` must be an integer from 1 to 65536, got 0'],
    'launch.nodes=65537': ['`launch.nodes` must be an integer from 1 to 65536, got 65537'],
    'launch.nodes=2': ['`launch.rdzv_endpoint` must be host:port with `launch.nodes`=2; give one of the hosts and a free port'],
    'launch.max_restarts=-1': ['`launch.max_restarts` must be an integer of at least 0, got -1'],
    'launch.timeout_seconds=0': ['`launch.timeout_seconds` must be a finite number above 0 and at most 1000000.0, got 0'],
    'launch.timeout_seconds=10s': ["`launch.timeout_seconds` must be a finite number above 0 and at most 1000000.0, got '10s'"],
    'launch.rdzv_endpoint=host': ["`launch.rdzv_endpoint` must be a string that matches [^:\\s]+:[0-9]{1,5} or null, got 'host'"],
    'launch.rdzv_endpoint=host:0': ['`launch.rdzv_endpoint` must have a port from 1 to 65535, got host:0; give a free port of that host'],
    'launch.rdzv_endpoint=host:70000': ['`launch.rdzv_endpoint` must have a port from 1 to 65535, got host:70000; give a free port of that host'],
    'strategy.chunks=0': ['`strategy.chunks` must be an integer from 1 to 4096, got 0'],
    'strategy.chunks=8192': ['`strategy.chunks` must be an integer from 1 to 4096, got 8192'],
    'strategy.chunks=12': ['`strategy.chunks` must be a power of two, got 12, because gradients are added in a binary tree; use 8 or 16'],
    'strategy.reduction=slow': ["`strategy.reduction` must be one of fast, exact, got 'slow'"],
    'strategy.tensor_parallel=0': ['`strategy.tensor_parallel` must be an integer of at least 1, got 0'],
    'strategy=fsdp': ['`strategy`=fsdp must have at least 2 processes to shard the model over, got 1; start more with launch.processes=2 or torchrun --nproc-per-node 2, or use strategy=single'],
    'deterministic=sometimes': ["`deterministic` must be true or false, got 'sometimes'"],
    'amp=float64': ["`amp` must be one of off, bfloat16, float16, got 'float64'; did you mean float16?"],
    'update=automatic': ["`update` must be one of manual, optimizer, got 'automatic'"],
    'device.matmul_precision=low': ["`device.matmul_precision` must be one of highest, high, medium, got 'low'"],
    'device.threads=1025': ['`device.threads` must be an integer from 1 to 1024 or null, got 1025'],
    'data.start=1e400': ['`data.start` must be a finite number, got inf'],
    'data.stop=-1': ['`data.start` must be below `data.stop`=-1.0, got 1.0; use a smaller data.start'],
    'data.start=-1e308 data.stop=1e308': ['`data.stop` must be at most 1.8e308 above `data.start`=-1e+308, the largest float64, got 1e+308; use a smaller range'],
    'data.slope=1e308 data.stop=1e3 data.noise=0 dtype=float64': ['`data`=line must give numbers up to 1.8e308, the largest float64, but the target of row 2 is inf; make `data.stop` or `data.slope` or `data.intercept` or `data.noise` smaller'],
    'data.noise_distribution=cauchy': ["`data.noise_distribution` must be one of normal, uniform, got 'cauchy'"],
    'data.rows=1.5': ['`data.rows` must be an integer of at least 1, got 1.5'],
    'data.features=0': ['`data.features` must be an integer of at least 1, got 0'],
    'data.standardize=both': ["`data.standardize` must be true or false, got 'both'"],
    'data.split.order=sorted': ["`data.split.order` must be one of sequential, random, got 'sorted'"],
    'data.split.test=1.0': ['`data.split.test` must be an integer number of rows or a fraction below 1, got 1.0; write a number of rows without a decimal point'],
    'data.seed=-1': ['`data.seed` must be an integer from 0 to 4294967295 or null, got -1'],
    'seed=1.5': ['`seed` must be an integer from 0 to 4294967295, got 1.5'],
    'loss=huber loss.delta=0': ['`loss.delta` must be a finite number above 0, got 0'],
    'loss=huber loss.delta=nan': ['`loss.delta` must be a finite number above 0, got nan'],
    'model.init=ones': ["`model.init` must be one of kaiming, uniform, normal, zeros, got 'ones'"],
    'model=polynomial model.degree=51': ['`model.degree` must be an integer from 1 to 50, got 51'],
    'model=polynomial model.degree=0': ['`model.degree` must be an integer from 1 to 50, got 0'],
    'model=mlp model.widths=[]x': ['`model.widths` has a value that cannot be read, []x; put the whole argument in quotes for the shell: "model.widths=[]x …"'],
    'model=mlp model.widths=[1.5]': ['`model.widths` must be a list, each item an integer of at least 1, got [1.5]'],
    'model=mlp model.dropout=1': ['`model.dropout` must be a finite number of at least 0 and below 1, got 1'],
    'model=formula model.expression=a*x+': ["`model.expression`: the formula 'a*x+' is refused at column 5: expected a number, a name or `(`, but the formula ends"],
    'model=formula model.expression=import(x)': ["`model.expression`: the formula 'import(x)' is refused at column 1: `import` is a reserved word of Python; choose another name, or write a column of this name in backticks"],
    'model=formula model.expression=': ["`model.expression`: the formula '' is refused at column 1: it is empty; write one such as a*x + b"],
    'model=formula model.expression=a*q': ["`model.expression` must use a column of the data (x), got 'a*q'; correct the names, and write those with blanks or signs in backticks"],
    'data=curve data.expression=x.real': ["`data.expression`: the formula 'x.real' is refused at column 2: '.' is not allowed; a formula consists of numbers, names (in backticks if they have other characters), + - * / **, comparisons, parentheses and functions"],
    'data=curve data.expression=3': ['`data.expression` must have at least one name, the feature, but has none; write for example sin(x)'],
    'data=curve data.expression=log(x) data.start=-1': ["`data.expression` must be finite on the whole range, but 'log(x)' is not at x=-1; change data.start and data.stop"],
    'schedule=cosine schedule.final_factor=2': ['`schedule.final_factor` must be a finite number from 0 to 1, got 2'],
    'schedule=warmup_cosine schedule.warmup_steps=2': ['`train.steps` must be at least 3 with `schedule`=warmup_cosine, got 2; use more steps, or a shorter warm-up'],
    'optimizer=lm optimizer.radius=0': ['`optimizer.radius` must be a finite number above 0 and at most 1e+38, got 0'],
    'optimizer=lbfgs optimizer.max_iter=0': ['`optimizer.max_iter` must be an integer of at least 1, got 0'],
    'optimizer=lbfgs optimizer.line_search=armijo': ["`optimizer.line_search` must be strong_wolfe or null, got 'armijo'"],
    'optimizer=momentum optimizer.momentum=1': ['`optimizer.momentum` must be a finite number of at least 0 and below 1, got 1'],
    'optimizer=adam optimizer.betas=[0.9]': ['`optimizer.betas` must be a list of 2 items, each a finite number of at least 0 and below 1, got [0.9]'],
    'optimizer=lstsq model=mlp': ['`optimizer` must not be lstsq for a model that is not linear in its parameters, got mlp; use optimizer=lm'],
    'seeds=0': ['`seeds` must be an integer of at least 1, got 0; write seeds=8'],
    'seeds=x': ["`seeds` must be an integer of at least 1, got 'x'; write seeds=8"],
    '-m seed=1,2 seeds=2': ['`seeds` is short for a range of `seed`, which is swept as well; leave one of them out'],
    '-m seeds=0': ['`seeds` must be an integer of at least 1, got 0; write seeds=8'],
    '-m seeds=1,2': ['`seeds` must be one value for the whole sweep, got 1,2; write seeds=VALUE'],
    '-m run_dir=a,b seed=1,2': ['`run_dir` must be one value for the whole sweep, got a,b; put a string with commas in two pairs of quotes, one for the shell: "run_dir=\'a,b\'"'],
    '-m optimizer.lr=interval(0,1)': ['`optimizer.lr` must be a list of values for a grid, got interval(0,1); write optimizer.lr=1,2,3 or range(…), or search with hydra/sweeper=optuna'],
    '-m seed=range(0,20000)': ['`sweep.max_trials` must be at least the number of trials (20,000), got 10,000; give fewer values, or sweep.max_trials=20000'],
    '-m data.slope=range(0,1e15)': ['`sweep.max_trials` must be at least the number of trials (1,000,000,000,000,000), got 10,000; give fewer values'],
    '-m seed=range(0,1,0)': ['`seed` must have values that can be counted, got range(0,1,0); correct its ends'],
    '-m model=m*x': ["`model` must be one of custom, formula, linear, mlp, polynomial, got 'm*x'"],
    '-m optimizer.lr=-1,1': ['`optimizer.lr` must be a finite number from 0 to 1e+38, got -1'],
    '-m lrr=1,2': ['`lrr` is not a key; did you mean `optimizer.lr`?'],
    '-m rerun nope': ['`rerun` must not be given with -m, because it repeats one run; remove one of them'],
    '-m sweep.max_trials=1 seed=1,2': ['`sweep.max_trials` must be at least the number of trials (2), got 1; give fewer values, or sweep.max_trials=2'],
    '-m seed=1,x': ["trial 1: `seed` must be an integer from 0 to 4294967295, got 'x'"],
    'verify': ["`verify` must be followed by one of rerun, resume, world-size, sweep, got ''; see --help"],
    'verify nope': ["`verify` must be followed by one of rerun, resume, world-size, sweep, got 'nope'; see --help"],
    'verify rerun': ['the options cannot be read: the following arguments are required: RUN; see `python -m runner verify rerun --help`'],
    'verify rerun nope': ["`RUN` must be a run directory, got 'nope', which is not a directory; correct the path"],
    'explain lrr=1': ['`lrr` is not a key; did you mean `optimizer.lr`?'],
    'doctor x': ['the options cannot be read: unrecognized arguments: x; see `python -m runner doctor --help`'],
    '--resolve': ['`--resolve` must be used with --cfg; add --cfg job'],
    '--config-dir nope': ["`--config-dir` must be a folder of configuration groups, got 'nope'; correct the path"],
}  # fmt: skip

LONG_TEXTS: dict[str, tuple[list[str], list[str]]] = {
    'name=${oc.select:… 500 deep': (['name=' + '${oc.select:' * 500 + 'x' + '}' * 500], ['`name` must nest at most 16 references ${…}, got 500; use fewer']),
    'model.widths=[[[… 3,000 deep': (['model=mlp', 'model.widths=' + '[' * 3000], ['`model.widths` must have at most 64 levels of brackets, got 3000; use fewer']),
    'model.widths=[[[… 3,000 deep, and closed': (['model=mlp', 'model.widths=' + '[' * 3000 + ']' * 3000], ['`model.widths` must have at most 64 levels of brackets, got 3000; use fewer']),
    'L=3': ([LONG + '=3'], ['`' + "k" * 199 + '…' + "k" * 59 + '` is not a key; see docs/config.md for the list of keys']),
    'L': ([LONG], ['`' + "k" * 199 + '…' + "k" * 59 + '` must have the form key=value, but has no `=`; see --help']),
    '--L': (['--' + LONG], ['`--' + "k" * 197 + '…' + "k" * 59 + '` is not an option; write values as key=value, such as ' + "k" * 200 + '…' + "k" * 58 + '=…']),
    '~L': (['~' + LONG], ['`~' + "k" * 198 + '…' + "k" * 59 + '` deletes a key, but every key must have a value; set a value instead']),
    'model.L=3': (['model.' + LONG + '=3'], ['`model.' + "k" * 193 + '…' + "k" * 59 + '` is not a key; see docs/config.md for the list of keys']),
    'run_dir=Px': (['run_dir=' + PATH], ['`run_dir` must be an empty or a new directory, got ' + "a/" * 100 + '…' + "a/" * 29 + 'x: File name too long; use another one']),
    'resume=Px': (['resume=' + PATH], ['`optimizer.lr` must not change when a run is resumed, because it would change the experiment (only device, data.path, data.valid_path, data.test_path, strategy, launch, train.steps, train.epochs, train.cuda_graph, train.select, checkpoint, record may); remove it, or start a new run', "`resume` must be a run directory, got '" + "a/" * 99 + 'a…/' + "a/" * 28 + "x', which is not a directory; correct the path"]),
    'rerun Px': (['rerun', PATH], ["`rerun` must be a run directory, got '" + "a/" * 99 + 'a…/' + "a/" * 28 + "x', which is not a directory; correct the path"]),
    '--config-dir Px': (['--config-dir', PATH], ["`--config-dir` must be a folder of configuration groups, got '" + "a/" * 99 + 'a…/' + "a/" * 28 + "x'; correct the path"]),
    'data=csv data.target=y data.path=Px': (['data=csv', 'data.target=y', 'data.path=' + PATH], ["`data.path` must be a readable file, but '" + "a/" * 58 + '… cannot be read (File name too long); give its path with data.path=PATH, relative to the working directory']),
    'seed=L': (['seed=' + LONG], ["`seed` must be an integer from 0 to 4294967295, got '" + "k" * 116 + '…']),
    'name=L': (['name=' + LONG], ["`name` must be a string that matches [A-Za-z0-9][A-Za-z0-9._-]{0,99}, got '" + "k" * 116 + '…']),
    'optimizer=L': (['optimizer=' + LONG], ["`optimizer` must be one of adam, adamw, custom, lbfgs, lm, lstsq, momentum, sgd, got '" + "k" * 116 + '…']),
    'name=${L}': (['name=${' + LONG + '}'], ["`name` cannot be resolved: Interpolation key '" + "k" * 199 + '…' + "k" * 59 + "' not found; correct the reference, or give a value"]),
    'optimizer.name=L': (['optimizer.name=' + LONG], ['`optimizer.name` cannot be set by itself, because other keys depend on it; write optimizer=' + "k" * 190 + '…' + "k" * 60]),
    'record.sinks=[jsonl,L]': (['record.sinks=[jsonl,' + LONG + ']'], ['`record.sinks` must be a list of jsonl, tensorboard, got ' + "k" * 200 + '…' + "k" * 59 + '; remove it']),
    'verify rerun Px': (['verify', 'rerun', PATH], ["`RUN` must be a run directory, got '" + "a/" * 99 + 'a…/' + "a/" * 28 + "x', which is not a directory; correct the path"]),
    'verify sweep L': (['verify', 'sweep', LONG], ["`SWEEP` must be a sweep directory, got '" + "k" * 199 + '…' + "k" * 58 + "', which has no sweep.json; correct the path"]),
    'parity --out L': (['parity', '+experiment=linreg', '--out', LONG], ["`--out` must be a directory that does not exist yet, got '" + "k" * 199 + '…' + "k" * 59 + "' (File name too long); use another one"]),
    '-m hydra/launcher=L': (['-m', 'seeds=2', 'hydra/launcher=' + LONG], ["`hydra/launcher` must be one of vmap, pool, basic, joblib, submitit_local, submitit_slurm, ray, got '" + "k" * 116 + '…']),
    '-m hydra.launcher.L=1': (['-m', 'seeds=2', 'hydra.launcher.' + LONG + '=1'], ['`hydra.launcher.' + "k" * 184 + '…' + "k" * 59 + '` is not a key of hydra/launcher=vmap, which has none; leave it out']),
    '-m L=1,2': (['-m', LONG + '=1,2'], ['`' + "k" * 199 + '…' + "k" * 59 + '` is not a key; see docs/config.md for the list of keys']),
    'data.slope=[10,000 items]': (['data.slope=[' + ITEMS + ']'], ['`data.slope` must be a finite number, got [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,…']),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def check(arguments: list[str], messages: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command, which must be refused with these messages, soon, and leave the working directory as it is."""
    named = {argument.partition("=")[0] for argument in arguments}
    quick = [argument for argument in QUICK if argument.partition("=")[0] not in named]
    if named & {"train.epochs"}:
        quick = [argument for argument in quick if not argument.startswith("train.steps")]
    if any(argument.startswith("optimizer=") for argument in arguments):
        quick = [argument for argument in quick if not argument.startswith("optimizer.lr")]
    before, began = sorted(Path().rglob("*")), time.process_time()
    code = main([*arguments, *([] if arguments[0] in WITHOUT_A_RUN or "rerun" in arguments else quick)])
    seconds = time.process_time() - began
    assert [line.removeprefix("error: ") for line in capsys.readouterr().err.splitlines()] == messages
    assert code == 2
    assert sorted(Path().rglob("*")) == before
    assert seconds < CPU_SECONDS


@pytest.mark.parametrize(("files", "arguments", "messages"), TABLES.values(), ids=TABLES.keys())
def test_a_bad_table_is_refused(
    files: dict[str, str | bytes], arguments: list[str], messages: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    check(arguments, messages, capsys)


@pytest.mark.parametrize(("command", "messages"), COMMANDS.items(), ids=COMMANDS.keys())
def test_a_bad_command_is_refused(command: str, messages: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    check(command.split(" "), messages, capsys)


@pytest.mark.parametrize(("arguments", "messages"), LONG_TEXTS.values(), ids=LONG_TEXTS.keys())
def test_a_message_about_a_long_text_is_short(
    arguments: list[str], messages: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert max(map(len, messages)) < 700
    check(arguments, messages, capsys)


def test_there_are_at_least_150_bad_inputs() -> None:
    assert len(TABLES) + len(COMMANDS) + len(LONG_TEXTS) >= 150
