"""Verbs of the command line: each module or folder has USAGE and command()."""

USAGE = """\
python -m runner +experiment=NAME [key=value …]     one run
python -m runner resume=RUN_DIR [key=value …]       resume a run
python -m runner rerun RUN_DIR [key=value …]        repeat a run in a new directory
python -m runner -m … key=a,b,c key='range(0,8)'    a sweep over every combination; seeds=8 for eight seeds
python -m runner … data.split.folds=5               a cross-validation, which is a sweep over five folds
python -m runner -m resume=SWEEP_DIR                resume a sweep: run its missing and failed trials

python -m runner predict RUN --input FILE --output FILE     predictions of a trained model for new rows
python -m runner evaluate RUN --input FILE                  its metrics on other rows, by group, and what it relies on
python -m runner export RUN --format safetensors|onnx --output PATH     a trained model as files that need no run directory
python -m runner explain +experiment=NAME …         show each value, where it was set and what it means; nothing is run
python -m runner doctor                             what this machine can run, what it cannot, and how to fix it
python -m runner parity +experiment=NAME …          run an experiment in every supported way and compare with a reference
python -m runner verify rerun|resume|world-size|sweep …     check that a run gives the same bits again
python -m runner diverge A B                        find the first step and the first tensor in which two runs differ
python -m runner completion bash|zsh|fish           a script with which the shell completes all of this by the Tab key

options
  VERB --help          the options of a verb
  --config-dir DIR     your own groups and experiments, in addition to those below
  --trust PACKAGE      allow code of your own that the configuration names, such as model.target=my_lab.nets:Net; repeatable
  --cfg job            show the configuration with references resolved and exit
  --help, --version
"""

VERBS = ("predict", "evaluate", "export", "parity", "verify", "diverge", "doctor", "explain", "completion")
"""Verbs. Each is a module of this package with this name."""
