"""How processes learn that one of them failed, and how they end then."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable

from runner.errors import Elsewhere, Lost, RunnerError
from runner.stopping import StopRequest
from runner.world.meeting import Meeting, poll
from runner.world.place import named

WATCH_SECONDS = 0.25
"""Time between two looks for news of a failure."""

GRACE_SECONDS = 5.0
"""How long a process may take to end by itself once another one failed, or its launcher is gone."""

LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "gloo",
    "NCCL",
    "Broken pipe",
    "Socket",
)
"""Words in the error of a collective that another process did not take part in."""


class News:
    """Word of the failure that ends an attempt: the first one that a process leaves."""

    def __init__(self, meeting: Meeting) -> None:
        self._meeting = meeting

    def leave(self, text: str, code: int) -> bool:
        """False when another process did before."""
        news = json.dumps({"rank": self._meeting.place.rank, "text": text, "code": code})
        return self._meeting.say_first("failure", news)

    def heard(self) -> Elsewhere | None:
        return self._read() if self._meeting.said("failure") else None

    def answer(self, name: str, seconds: float) -> str:
        """What rank 0 says under a name. Raises `Elsewhere` when the run has failed instead."""

        def there() -> bool:
            if self._meeting.said("failure") and not self._meeting.said(name):
                raise self._read()
            return self._meeting.said(name)

        self._meeting.wait(there, seconds, "rank 0 did not answer")
        return self._meeting.word(name)

    def explain(self, error: BaseException, step: int, timeout_seconds: float) -> RunnerError:
        """Which process did not take part in a collective that failed: those that did tell each other."""
        meeting = self._meeting
        try:
            meeting.say(f"stuck/{meeting.place.rank}", "")
            stuck = [f"stuck/{rank}" for rank in range(meeting.place.size)]
            poll(lambda: meeting.said("failure") or meeting.said(*stuck), GRACE_SECONDS / 2)
            missing = [rank for rank, name in enumerate(stuck) if not meeting.said(name)]
            who = named(missing) if missing else "the connection between the processes"
            what = f"did not answer within {timeout_seconds:g} seconds" if "imed out" in str(error) else "was lost"
            then = "all processes start again" if meeting.place.starts_again else "go on with resume=…"
            text = f"{who} {what} at step {step}; {then}"
            return Lost(text) if self.leave(text, 1) else self._read()
        except Exception:  # the store is gone as well, and with it the process or launcher that kept it
            return Lost(f"the launcher, or rank 0, is gone at step {step}; go on with resume=…")

    def _read(self) -> Elsewhere:
        news = json.loads(self._meeting.word("failure"))
        return Elsewhere(news["text"], news["code"])


class Watch:
    """Beside the training: ends this process when another one failed or the launcher is gone, and it does not itself."""

    def __init__(self, meeting: Meeting) -> None:
        self.request: StopRequest | None = None
        self.tell: Callable[[str], None] = lambda reason: None
        self._meeting, self._launcher = meeting, meeting.place.launcher
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._look, args=(meeting.beside(),), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave the others, when there is nothing more to hear or to tell."""
        self._left.set()
        with contextlib.suppress(RuntimeError):  # the store is gone, and with it whoever could wait
            self._meeting.leave(GRACE_SECONDS + 4 * WATCH_SECONDS)  # those that are stuck take `GRACE_SECONDS`
        # Python would end it in the midst of torch's C++, which ends the process in turn.
        self._thread.join(GRACE_SECONDS)

    def _look(self, meeting: Meeting) -> None:
        news = News(meeting)
        while not self._left.wait(WATCH_SECONDS):
            if self._launcher is not None and os.getppid() != self._launcher:
                self._orphaned()
            try:
                failure = news.heard()
            except Exception:
                failure = Elsewhere("the launcher, or rank 0, is gone", 1)
            if failure is not None and not self._left.wait(GRACE_SECONDS):
                with contextlib.suppress(RuntimeError):  # the store is gone
                    meeting.leave(0.0)
                self._end(str(failure), failure.exit_code)

    def _orphaned(self) -> None:
        """The launcher was killed: stop as on SIGTERM, saving, or at once if that takes too long."""
        if self.request is not None:
            self.request.signal_number = self.request.signal_number or signal.SIGTERM
        if not self._left.wait(GRACE_SECONDS):
            self._end("the launcher is gone", 1)

    def _end(self, reason: str, code: int) -> None:
        try:
            self.tell(reason)
        finally:
            sys.stderr.flush()
            os._exit(code)


def is_lost(error: BaseException) -> bool:
    """Whether it is the error of a collective that another process did not take part in."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in LOST)
    )
