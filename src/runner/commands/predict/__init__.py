"""`predict RUN --input FILE --output FILE`: predictions of a trained model for new rows."""

from __future__ import annotations

from runner.commands.arguments import ModelParser, print_lines

USAGE = """\
python -m runner predict RUN --input new.csv --output out.csv [key=value …]      predictions of a trained model for new rows

RUN is a run directory or an export; or a sweep directory, whose predictions are the mean over the seeds of its best
setting, and `spread` is their standard deviation. Columns are found by name, in any order; others are not used. Rows stay
in their order. Input and output are text (also .gz, .bz2, .xz, .zst) or Parquet, Feather and Arrow; - is standard input or
output. Where the input has the targets, metrics are printed as well.

options
  --keep NAME,NAME     columns of the input that come first in the output, such as an identifier
  --interval LEVEL     also low and high, which hold the target of a new row with this probability, such as 0.9: by the
                       rows of data.split.calibrate, or without those by the covariance of a fit by lm or lstsq
  --state STATE        last, best, or the number of a step; without it the state that the run reports
  --device DEVICE      auto, cpu, cuda, rocm, mps or xpu (auto)
  --force              replace an output that exists

keys
  predict.unseen=error        refuse a category that the training rows did not have; other is one without a column of its own
  data.missing=mean           the mean of the training rows for a missing value; error refuses it
  data.missing_values=[…], data.delimiter, data.decimal, data.encoding, data.comment, data.skip_rows, data.header, data.rename
                              how the input is written, where it is not as the training rows

exit code   0 written · 1 the output cannot be written · 2 the run or the input cannot be used
"""


def command(arguments: list[str]) -> int:
    """Predict, write the output, print what was done, and return the exit code."""
    parser = ModelParser("predict")
    parser.add_rows()
    parser.add_argument("--output", required=True)
    parser.add_argument("--keep", default="")
    parser.add_argument("--interval", type=float)
    options = parser.read(arguments)
    from runner.commands.predict.job import predict

    print_lines(predict(options), output=options.output)
    return 0
