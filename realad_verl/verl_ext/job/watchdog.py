"""Ends a job that hangs, with the cause: a phase that exceeds its limit dumps every process's stack.

verl waits without limit in several places (a rollout whose engine died, a weight update whose receiver failed), and a
hung job on a cluster costs as much as a working one.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from realad_verl.verl_ext.job.parts import Actors, Processes
from realad_verl.verl_ext.run_folder import heartbeat

STACKS = "stacks.txt"
DUMP_LIMIT_S = 60.0
# Seconds that verl and Ray have for an error of their own, which says more, after a part has died.
GRACE_S = 20.0


class PhaseTimeout(Exception):
    """A phase took longer than its limit; the message names it."""


class PartDied(Exception):
    """A process or an actor of the run is gone and nothing reported it; the message names it."""


class Watchdog:
    """A context that raises in the main thread when the heartbeat stands still (:class:`PhaseTimeout`), or a part of
    the run is gone and the run goes on waiting (:class:`PartDied`).

    The main thread waits in ``ray.get``, which a signal interrupts only where its handler raises KeyboardInterrupt: Ray
    drops every other exception. Leaving the context turns it into the right one.

    Args:
        folder: the run folder, where the heartbeat is read and the stacks are written.
        start_s: seconds that starting Ray, the workers and vLLM may take. 0: no limit.
        phase_s: seconds that one phase of a step may take. 0: no limit.
        interval: seconds between two looks.
        grace_s: seconds from the death of a part to PartDied.
    """

    def __init__(self, folder: Path, start_s: float, phase_s: float, interval: float = 2.0, grace_s: float = GRACE_S):
        self.folder, self.start_s, self.phase_s, self.interval = folder, start_s, phase_s, interval
        self.grace_s, self._processes, self._actors = grace_s, Processes(), Actors()
        self._began = time.time()
        self._beat: heartbeat.Beat | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._error: Exception | None = None

    def __enter__(self) -> "Watchdog":
        self._previous = signal.signal(signal.SIGUSR1, signal.default_int_handler)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)
        signal.signal(signal.SIGUSR1, self._previous)
        if self._error is not None and isinstance(error, KeyboardInterrupt):
            raise self._error from None

    def lost(self) -> list[str]:
        """The parts of the run on this machine that went first."""
        return self._processes.lost(time.time(), grace_s=0)

    def overdue(self, now: float) -> str | None:
        """The message of a phase that is over its limit at time ``now``, or None."""
        self._beat = beat = heartbeat.read(self.folder) or self._beat  # an unreadable file is no news
        starting = beat is None or beat.step == 0
        phase, since = (beat.phase, beat.since) if beat is not None else ("starting Ray", self._began)
        key, limit = ("start_s", self.start_s) if starting else ("phase_s", self.phase_s)
        if not limit or now - since < limit:
            return None
        step = f" of step {beat.step}" if beat is not None and beat.step else ""
        return (
            f"'{phase}'{step} took longer than realad.watchdog.{key} = {limit:g} s. The stacks of this machine's "
            f"processes are in {self.folder / STACKS}. If the phase is slow rather than stuck, raise the limit."
        )

    def _look(self) -> Exception | None:
        now = time.time()
        if lost := self._processes.lost(now, self.grace_s) or self._actors.lost(now, self.grace_s):
            return PartDied(f"lost {', '.join(lost)}: a run cannot go on without.")
        message = self.overdue(now)
        return PhaseTimeout(message) if message is not None else None

    def _watch(self) -> None:
        while not self._stop.wait(self.interval):
            self._error = self._look()
            if self._error is not None:
                try:
                    dump_stacks(self.folder / STACKS)
                except OSError as error:  # a full disk must not keep a stuck job alive
                    self._error = type(self._error)(f"{self._error} The stacks could not be written: {error}.")
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                return


def job_processes() -> list[psutil.Process]:
    """This process, its children, and Ray's processes of this user on this machine."""
    own = psutil.Process()
    found = {own.pid: own} | {p.pid: p for p in own.children(recursive=True)}
    for process in psutil.process_iter(["name", "cmdline", "uids"]):
        command = " ".join(process.info["cmdline"] or [])
        mine = process.info["uids"] is not None and process.info["uids"].real == os.getuid()
        if mine and (command.startswith(("ray::", "VLLM::"))):
            found[process.pid] = process
    return list(found.values())


def dump_stacks(path: Path, limit_s: float = DUMP_LIMIT_S) -> None:
    """Write the stacks of the job's processes on this machine to ``path`` (py-spy where it is installed).

    Takes ``limit_s`` seconds at most: processes that do not fit are named without their stacks.
    """
    deadline = time.monotonic() + limit_s
    spy = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    with open(path, "w") as out:
        for process in job_processes():
            try:
                out.write(f"=== {process.pid} {' '.join(process.cmdline())[:120]}\n")
            except psutil.NoSuchProcess:
                continue
            if spy is None:
                out.write("install py-spy for the stack\n")
                continue
            out.write(_stack(spy, process.pid, min(10.0, deadline - time.monotonic())) + "\n")


def _stack(spy: str, pid: int, timeout: float) -> str:
    if timeout <= 0:
        return "no time left for the stack"
    try:
        done = subprocess.run([spy, "dump", "--pid", str(pid)], capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"no stack within {timeout:.0f} s"
    return done.stdout + done.stderr
