"""Failure reports between processes, and the thread that ends a process after another one failed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping

from runner.compute.processes.environment import format_ranks
from runner.compute.processes.notes import REASON
from runner.compute.processes.rendezvous import Rendezvous, poll
from runner.compute.signals import StopRequest
from runner.errors import Interrupted, ProcessLost, RemoteRankError, RunnerError

WATCH_SECONDS = 0.25
"""Time between two checks for a failure report."""

GRACE_SECONDS = 5.0
"""Longest time for a process to end by itself after another one failed or its launcher exited."""

LOST_MESSAGES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "gloo",
    "NCCL",
    "Broken pipe",
    "Socket",
)
"""Parts of the message of a collective that failed because another process did not take part."""


class FailureChannel:
    """Messages between the processes about failures. The first report ends the attempt; beats of the watchdogs show which live."""

    def __init__(self, rendezvous: Rendezvous) -> None:
        self._rendezvous = rendezvous
        self._heard: Mapping[int, str] = {}
        self._silence: dict[int, float] = defaultdict(float)  # seconds

    def report(self, text: str, code: int) -> bool:
        """Report a failure of this process with its exit code. Return False when another process reported one before."""
        failure = json.dumps({"rank": self._rendezvous.environment.rank, "text": text, "code": code})
        return self._rendezvous.publish_first("failure", failure)

    def received(self) -> RemoteRankError | None:
        """Return the reported failure, or None when there is none."""
        return self._read() if self._rendezvous.has("failure") else None

    def wait_for(self, key: str, seconds: float) -> str:
        """Return the text that rank 0 publishes. Raises `RemoteRankError` when the run fails first."""

        def available() -> bool:
            if self._rendezvous.has("failure") and not self._rendezvous.has(key):
                raise self._read()
            return self._rendezvous.has(key)

        self._rendezvous.wait_for(available, seconds, "rank 0 did not answer")
        return self._rendezvous.get(key)

    def wait_while_alive(self, keys: Mapping[int, str], seconds: float, stop: StopRequest | None) -> dict[int, str]:
        """Return the text of a key for each rank; waits however long for a process that is alive.

        A process whose watchdog has been silent for so many seconds is lost. Raises `ProcessLost` then, `RemoteRankError` when
        the run fails first, and `Interrupted` when a watchdog has been silent for `GRACE_SECONDS` after a signal.
        """
        while not poll(lambda: self._rendezvous.has(*keys.values()), WATCH_SECONDS):
            failure = self.received()
            if failure is not None:
                raise failure
            self._listen()
            signal_number = None if stop is None else stop.signal_number
            limit = seconds if signal_number is None else min(seconds, GRACE_SECONDS)
            silent = [rank for rank in keys if self._silence[rank] >= limit and not self._rendezvous.has(keys[rank])]
            if silent and signal_number is not None:  # the launcher ends this process as well
                raise Interrupted(signal_number, "stopped; what was saved is kept")
            if silent:
                text = f"{format_ranks(silent)} did not answer within {limit:g} seconds; continue with resume=…"
                self._rendezvous.environment.notes.write(REASON, text)
                raise ProcessLost(text) if self.report(text, 1) else self._read()
        return {rank: self._rendezvous.get(key) for rank, key in keys.items()}

    def _listen(self) -> None:
        """Add a check to the silence of each watchdog that has not beaten since the last one."""
        # Counted in checks, so that it does not grow while this process is stopped itself.
        before, self._heard = self._heard, self._beats()
        for rank, beat in self._heard.items():
            self._silence[rank] = self._silence[rank] + WATCH_SECONDS if beat == before.get(rank) else 0.0

    def diagnose(self, error: BaseException, step: int | None, timeout_seconds: float) -> RunnerError:
        """Return an error that names the process which missed a failed collective, and report it.

        `step` is None before training begins. When another process reported a failure before, returns that one.
        """
        when = "before training began" if step is None else f"at step {step}"
        remedy = "start again" if step is None else "continue with resume=…"
        try:
            missing, late = self._missing("imed out" in str(error) or "timeout" in str(error))
            who = format_ranks(missing) if missing else "the connection between the processes"
            lost = "were lost" if len(missing) > 1 else "was lost"
            event = f"did not answer within {timeout_seconds:g} seconds" if late else lost
            environment = self._rendezvous.environment
            text = f"{who} {event} {when}; {'all processes restart' if environment.will_restart else remedy}"
            if late:  # the launcher sees only that it had to kill that process
                environment.notes.write(REASON, text)
            return ProcessLost(text) if self.report(text, 1) else self._read()
        except ProcessLost as closed:
            return ProcessLost(f"{closed} {when}; {remedy}")

    def _missing(self, late: bool) -> tuple[list[int], bool]:
        """Return the ranks that do not answer, and whether any process waited until its timeout.

        `late` says whether this process did. Processes whose watchdog does not answer come first; when all watchdogs answer,
        the missing ranks are those whose collective has not failed.
        """
        # The first process to give up closes its connections, so the others see a closed connection and no timeout.
        # A process that waits for one like this, not for the lost one, is stuck until this one ends: only its watchdog answers.
        rendezvous, before = self._rendezvous, self._beats()
        failed = {rank: f"failed/{rank}" for rank in before}
        rendezvous.publish(failed[rendezvous.environment.rank], "late" if late else "lost")
        poll(lambda: rendezvous.has("failure") or rendezvous.has(*failed.values()), GRACE_SECONDS / 2)
        causes = {rank: rendezvous.get(key) for rank, key in failed.items() if rendezvous.has(key)}
        missing, beats = [rank for rank in failed if rank not in causes], self._beats()
        return [rank for rank in missing if beats[rank] == before[rank]] or missing, "late" in causes.values()

    def _beats(self) -> dict[int, str]:
        """Return the newest beat of every watchdog by rank, and an empty text for one that has not begun."""
        keys = {rank: f"beat/{rank}" for rank in range(self._rendezvous.environment.size)}
        return {rank: self._rendezvous.get(key) if self._rendezvous.has(key) else "" for rank, key in keys.items()}

    def _read(self) -> RemoteRankError:
        failure = json.loads(self._rendezvous.get("failure"))
        return RemoteRankError(failure["text"], failure["code"])


class Watchdog:
    """Thread that ends this process when another one failed or the launcher exited, and the main thread is stuck.

    It also publishes beats, which show that this process is alive. `watched` is the same rendezvous over a second connection, which
    only the thread uses.
    `request` is the stop request to set when the launcher exits or another process has received a signal. `on_failure` receives
    the reason before the process ends.
    """

    def __init__(self, rendezvous: Rendezvous, watched: Rendezvous) -> None:
        self.request: StopRequest | None = None
        self.on_failure: Callable[[str], None] = lambda reason: None
        self._rendezvous, self._launcher = rendezvous, rendezvous.environment.launcher_pid
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(watched,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave the rendezvous and stop the thread."""
        self._left.set()
        with contextlib.suppress(ProcessLost):  # nobody is left to wait for
            self._rendezvous.leave(GRACE_SECONDS + 4 * WATCH_SECONDS)  # stuck processes take `GRACE_SECONDS`
        # Python would end a running thread in the midst of torch's C++, which would crash the process.
        self._thread.join(GRACE_SECONDS)

    def _watch(self, rendezvous: Rendezvous) -> None:
        failures = FailureChannel(rendezvous)
        beat = 0
        while not self._left.wait(WATCH_SECONDS):
            failure: RunnerError | None
            beat += 1
            try:
                if self._launcher is not None and os.getppid() != self._launcher:
                    raise ProcessLost("the launcher exited")
                rendezvous.publish(f"beat/{rendezvous.environment.rank}", str(beat))
                self._share_signal(rendezvous)
                failure = failures.received()
            except ProcessLost as closed:
                self._request_stop()
                failure = closed
            if failure is not None and not self._left.wait(GRACE_SECONDS):
                with contextlib.suppress(ProcessLost):
                    rendezvous.leave(0.0)
                self._exit(str(failure), failure.exit_code)

    def _share_signal(self, rendezvous: Rendezvous) -> None:
        """Tell the other processes of a signal to this one, or request a stop because of a signal to another one."""
        if self.request is None:
            return
        if self.request.signal_number is not None:
            rendezvous.publish("signal", str(self.request.signal_number))
        elif rendezvous.has("signal"):
            self.request.request(int(rendezvous.get("signal")))

    def _request_stop(self) -> None:
        """Request a stop as SIGTERM does: without their launcher the processes may still be able to save."""
        if self.request is not None:
            self.request.request(signal.SIGTERM)

    def _exit(self, reason: str, code: int) -> None:
        """Report the reason and end the process without unwinding its main thread."""
        try:
            self.on_failure(reason)
        finally:
            sys.stderr.flush()
            os._exit(code)


def is_lost(error: BaseException) -> bool:
    """Whether a collective failed with this error because another process did not take part."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(part in str(error) for part in LOST_MESSAGES)
    )
