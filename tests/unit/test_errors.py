"""Messages have a bounded length whatever the input, and keep their beginning and their end."""

from __future__ import annotations

import pickle

import pytest

from runner.errors import LONGEST_MESSAGE, ConfigError, Interrupted, RunFailed, shortened


@pytest.mark.parametrize("text", ["", "`seed` must be 1; use 1", "/" + "a" * 298, "a\nb  c"])
def test_a_message_with_words_of_usual_length_is_unchanged(text: str) -> None:
    assert shortened(text) == text


def test_a_long_word_is_cut_in_its_middle() -> None:
    key = "`" + "k" * 100_000 + "`"
    assert shortened(f"{key} is not a key; see --help") == f"`{'k' * 199}…{'k' * 59}` is not a key; see --help"


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    text = shortened("begin " + "ab " * 10_000 + "end")
    assert len(text) == LONGEST_MESSAGE
    assert text.startswith("begin ab ")
    assert text.endswith(" ab end")


def test_every_error_is_short_and_can_be_sent_to_another_process() -> None:
    word = "k" * 1000
    cut = f"{'k' * 200}…{'k' * 60}"
    assert ConfigError([word, "b"]).problems == (cut, "b")
    assert str(RunFailed(word)) == cut
    assert str(Interrupted(15, word)) == f"{cut} (SIGTERM)"
    assert pickle.loads(pickle.dumps(ConfigError(["a", "b"]))).problems == ("a", "b")


def test_problems_after_the_first_hundred_are_counted() -> None:
    assert ConfigError(str(i) for i in range(100)).problems == tuple(str(i) for i in range(100))
    assert ConfigError(str(i) for i in range(1101)).problems[99:] == ("99", "and 1,001 more problems")
    again = pickle.loads(pickle.dumps(ConfigError(["a"] * 102)))
    assert again.problems == (*["a"] * 100, "and 2 more problems")
