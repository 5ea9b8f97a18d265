"""Every promise about devices, tested on one GPU; the files run in the order of their numbers, cheap ones first.

Without a GPU all of them are skipped. `RUNNER_TEST_DEVICE=cpu python -m pytest tests/gpu` rehearses on the CPU what does not
need a GPU, so that a mistake in a test costs no time on one.
"""
