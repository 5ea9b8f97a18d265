"""How processes learn that one of them failed, and how they end then."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable

from runner.compute.processes.environment import named
from runner.compute.processes.rendezvous import Meeting, poll
from runner.compute.signals import StopRequest
from runner.errors import ProcessLost, RemoteRankError, RunnerError

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


ASKED = "who lives"
"""What watches answer to, each by saying that its process is alive."""


class News:
    """Word of the failure that ends an attempt: the first one that a process leaves."""

    def __init__(self, meeting: Meeting) -> None:
        self._meeting = meeting

    def leave(self, text: str, code: int) -> bool:
        """False when another process did before."""
        news = json.dumps({"rank": self._meeting.place.rank, "text": text, "code": code})
        return self._meeting.say_first("failure", news)

    def heard(self) -> RemoteRankError | None:
        return self._read() if self._meeting.said("failure") else None

    def answer(self, name: str, seconds: float) -> str:
        """What rank 0 says under a name. Raises `RemoteRankError` when the run has failed instead."""

        def there() -> bool:
            if self._meeting.said("failure") and not self._meeting.said(name):
                raise self._read()
            return self._meeting.said(name)

        self._meeting.wait(there, seconds, "rank 0 did not answer")
        return self._meeting.word(name)

    def explain(self, error: BaseException, step: int | None, timeout_seconds: float) -> RunnerError:
        """Which process did not take part in a collective that failed; `step` is None before training begins."""
        when = "before training began" if step is None else f"at step {step}"
        then = "start again" if step is None else "go on with resume=…"
        try:
            missing, late = self._missing("imed out" in str(error) or "timeout" in str(error))
            who = named(missing) if missing else "the connection between the processes"
            lost = "were lost" if len(missing) > 1 else "was lost"
            what = f"did not answer within {timeout_seconds:g} seconds" if late else lost
            again = self._meeting.place.starts_again
            text = f"{who} {what} {when}; {'all processes start again' if again else then}"
            return ProcessLost(text) if self.leave(text, 1) else self._read()
        except ProcessLost as gone:
            return ProcessLost(f"{gone} {when}; {then}")

    def _missing(self, late: bool) -> tuple[list[int], bool]:
        """Who does not answer, of all that live and of those whose collectives fail like this process's own; and whether
        any of these waited in vain, since the first one to give up closes its connections to the others.

        One that waits for a process like this, and not for the lost one itself, is stuck until this one ends: only its watch
        can answer.
        """
        meeting, ranks = self._meeting, range(self._meeting.place.size)
        alive, failed = ([f"{name}/{rank}" for rank in ranks] for name in ("alive", "failed"))
        for name in (ASKED, alive[meeting.place.rank]):
            meeting.say(name, "")
        meeting.say(failed[meeting.place.rank], "late" if late else "lost")
        poll(lambda: meeting.said("failure") or meeting.said(*failed), GRACE_SECONDS / 2)
        dead = [rank for rank in ranks if not meeting.said(alive[rank])]
        told = {rank: meeting.word(failed[rank]) for rank in ranks if meeting.said(failed[rank])}
        return dead or [rank for rank in ranks if rank not in told], "late" in told.values()

    def _read(self) -> RemoteRankError:
        news = json.loads(self._meeting.word("failure"))
        return RemoteRankError(news["text"], news["code"])


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
        with contextlib.suppress(ProcessLost):  # there is nobody who could wait
            self._meeting.leave(GRACE_SECONDS + 4 * WATCH_SECONDS)  # those that are stuck take `GRACE_SECONDS`
        # Python would end it in the midst of torch's C++, which ends the process in turn.
        self._thread.join(GRACE_SECONDS)

    def _look(self, meeting: Meeting) -> None:
        news = News(meeting)
        while not self._left.wait(WATCH_SECONDS):
            failure: RunnerError | None
            try:
                if self._launcher is not None and os.getppid() != self._launcher:
                    raise ProcessLost("the launcher is gone")
                if meeting.said(ASKED):
                    meeting.say(f"alive/{meeting.place.rank}", "")
                failure = news.heard()
            except ProcessLost as gone:
                self._stop()
                failure = gone
            if failure is not None and not self._left.wait(GRACE_SECONDS):
                with contextlib.suppress(ProcessLost):
                    meeting.leave(0.0)
                self._end(str(failure), failure.exit_code)

    def _stop(self) -> None:
        """As on SIGTERM, saving: without their launcher the processes may well be able to."""
        if self.request is not None:
            self.request.signal_number = self.request.signal_number or signal.SIGTERM

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
