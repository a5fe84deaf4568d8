"""What the person at the terminal sees of a run: the phase, a line a step, the time left."""

import json
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from realad_verl.verl_ext.run_folder import heartbeat

# Shown for each step where present: heading, metric.
COLUMNS = (
    ("reward", "reward/total/mean"),
    ("format", "reward/format/mean"),
    ("accuracy", "reward/accuracy/mean"),
    ("consistency", "reward/consistency/mean"),
    ("J anomalous", "evidence/jaccard/anomalous"),
    ("J normal", "evidence/jaccard/normal"),
    ("tokens", "evidence/reasoning_tokens/mean"),
)


class RunProgress:
    """A context that follows the heartbeat and the metrics file of a run, from a thread of its own."""

    def __init__(self, folder: Path, metrics: Path, interval: float = 1.0):
        self.folder, self.metrics, self.interval = folder, metrics, interval
        self.console = Console(stderr=True)
        self._stop = threading.Event()
        self._seen = 0
        self._thread = threading.Thread(target=self._follow, name="run progress", daemon=True)

    def __enter__(self) -> "RunProgress":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _follow(self) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[left]}"), console=self.console) as bar:
            task = bar.add_task("starting Ray", total=None, left="")
            last = None
            while not self._stop.wait(self.interval):
                beat = heartbeat.read(self.folder)
                if beat is not None:
                    total = beat.total_steps or None
                    bar.update(task, description=beat.phase, total=total, completed=max(beat.step - 1, 0))
                    if not self.console.is_terminal and beat.phase != last and beat.step <= 1:
                        self.console.print(f"{time.strftime('%H:%M:%S')} {beat.phase}")
                    last = beat.phase
                for step, values in self._new_steps():
                    self.console.print(step_line(step, values))
                    if beat is not None and beat.total_steps:
                        left = (beat.total_steps - step) * values.get("timing_s/step", 0.0)
                        bar.update(task, left=f"about {left / 60:.0f} min left")
            for step, values in self._new_steps():
                self.console.print(step_line(step, values))

    def _new_steps(self):
        if not self.metrics.exists():
            return
        lines = self.metrics.read_text().splitlines(keepends=True)
        complete = [line for line in lines if line.endswith("\n")]
        for line in complete[self._seen :]:
            record = json.loads(line)
            yield record["step"], record["data"]
        self._seen = len(complete)


def step_line(step: int, values: dict) -> str:
    """One step in one line; a metric that the step does not have is left out."""
    shown = [f"{name} {values[key]:.2f}" for name, key in COLUMNS if key in values]
    if not shown:
        shown = [f"{key} {value:.3f}" for key, value in values.items() if key.startswith("val") and "mean" in key][:4]
    seconds = values.get("timing_s/step")
    return f"step {step}: " + ", ".join(shown) + (f", {seconds:.1f} s" if seconds else "")
