"""Kills random parts of a training job again and again; each time the job must end, and go on from its last checkpoint.

    python tests/e2e/soak.py --kills 20 --seed 0 --out FOLDER

Writes a line of FOLDER/kills.jsonl as each kill is over (a soak that is cut short is evidence too), then
FOLDER/soak.json and a table. Exit code 1 when a promise of docs/reliability.md was broken. On 2 cores a kill takes
about four minutes, nearly all of it the start of the next job.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import jobs
import psutil

from realad_verl.verl_ext.run_folder.checkpoints import last_complete

# Processes of a job by the start of their title. The launcher is the process that we started.
PARTS = {
    "actor worker": "ray::WorkerDict",
    "vLLM engine": "VLLM::EngineCore",
    "vLLM worker": "VLLM::Worker",
    "vLLM server": "ray::vLLMHttpServer",
    "agent loop": "ray::AgentLoopWorker",
    "reward loop": "ray::RewardLoopWorker",
    "sample store": "ray::SimpleStorageUnit",
    "task runner": "ray::TaskRunner",
    "raylet": "/raylet/raylet",
    "Ray's control store": "/gcs/gcs_server",
    "launcher": "",
}
SETTINGS = (
    "data.train_batch_size=4",
    "actor_rollout_ref.rollout.n=4",
    "realad.log.every=0",
    "trainer.save_freq=1",
    "trainer.total_training_steps=1000",
    # Most deaths end the job at once; a rollout that never answers is the watchdog's.
    "realad.watchdog.phase_s=120",
)
START_LIMIT = 1200.0
# Seconds from a fault to the end of the job: the watchdog's limit, its dump of the stacks, Ray's own shutdown.
END_LIMIT = 240.0
# Seconds from the end of the launcher to the end of the last process.
CLEAN_LIMIT = 60.0


@dataclass
class Kill:
    """One fault and what came of it; seconds are counted from the fault, or from the start of the resumed job."""

    number: int
    part: str
    step: int
    phase: str = ""
    saved_before: int = 0
    saved_after: int = 0
    returncode: int | None = None
    seconds_to_end: float = 0.0
    seconds_to_clean: float = 0.0
    error: str = ""
    left_over: list[str] = field(default_factory=list)
    first_step_after: int = 0
    seconds_to_resume: float = 0.0
    broken: list[str] = field(default_factory=list)


def wait_for(what: Callable[[], object], limit: float, interval: float = 0.2) -> float | None:
    """Seconds until ``what`` is true, or None when the limit came first."""
    began = time.monotonic()
    while time.monotonic() - began < limit:
        if what():
            return time.monotonic() - began
        time.sleep(interval)
    return None


class Soak:
    """A run folder and the job that trains in it now."""

    def __init__(self, out: Path, data: Path):
        self.out, self.folder, self.data = out, out / "run", data
        self.log = Path(f"{self.folder}.log")
        self.process: subprocess.Popen | None = None

    def steps(self) -> list[int]:
        """Logged steps of all parts of the run, in the order in which they were logged."""
        paths = sorted(self.folder.glob("metrics*.jsonl"), key=lambda path: path.stat().st_mtime)
        lines = [line for path in paths for line in path.read_text().splitlines(keepends=True)]
        return [json.loads(line)["step"] for line in lines if line.endswith("\n")]

    def saved(self) -> int:
        """The step of the checkpoint that a resume takes."""
        return last_complete(self.folder) or 0

    def start(self, resume: bool) -> tuple[float | None, int]:
        """Start the job; seconds to its first new step (None: it never came) and that step."""
        before, self.log_start = len(self.steps()), self.log.stat().st_size if self.log.exists() else 0
        self.process = jobs.start(self.folder, self.data, *SETTINGS, resume=resume)
        seconds = wait_for(lambda: len(self.steps()) > before or self.process.poll() is not None, START_LIMIT)
        new = self.steps()[before:]
        return (seconds, new[0]) if new else (None, 0)

    def victim(self, part: str) -> psutil.Process | None:
        if part in ("launcher", "SIGTERM"):
            return None if self.process.poll() is not None else psutil.Process(self.process.pid)
        for process in jobs.descendants(str(self.folder)):
            try:
                if PARTS[part] in process.cmdline()[0]:
                    return process
            except (psutil.NoSuchProcess, IndexError):
                continue
        return None

    def output(self) -> str:
        return self.log.read_text()[self.log_start :]

    def end(self, kill: Kill, began: float) -> None:
        """Wait for the end of the job and of its last process, and for nothing longer than the limits."""
        ended = wait_for(lambda: self.process.poll() is not None, END_LIMIT)
        if ended is None:
            kill.broken.append(f"still running after {END_LIMIT:.0f} s")
            self.process.kill()
            self.process.wait()
        kill.seconds_to_end, kill.returncode = time.monotonic() - began, self.process.returncode
        if wait_for(lambda: not jobs.descendants(str(self.folder)), CLEAN_LIMIT) is None:
            alive = jobs.descendants(str(self.folder))
            kill.left_over = [" ".join(p.cmdline())[:80] for p in alive]
            kill.broken.append(f"left over: {kill.left_over}")
            for process in alive:
                process.kill()
        kill.seconds_to_clean = time.monotonic() - began
        kill.saved_after = self.saved()

    def check_end(self, kill: Kill) -> None:
        """The promises that hold at the end of the job."""
        errors = [line for line in self.output().splitlines() if line.startswith("error: ")]
        kill.error = errors[0] if errors else ""
        if kill.part == "SIGTERM":
            if kill.returncode != 0 or errors:
                kill.broken.append(f"exit code {kill.returncode}, {errors}")
            if kill.saved_after != self.steps()[-1]:
                kill.broken.append(f"saved step {kill.saved_after}, logged step {self.steps()[-1]}")
        elif kill.part != "launcher":
            if kill.returncode != 1:
                kill.broken.append(f"exit code {kill.returncode}")
            if len(errors) != 1 or "the run died in '" not in kill.error or "resume: realad train" not in self.output():
                kill.broken.append(f"{len(errors)} errors, or no phase, or no resume command")
        if kill.saved_after < kill.saved_before:
            kill.broken.append(f"the checkpoint went back from step {kill.saved_before} to {kill.saved_after}")

    def hurt(self, number: int, part: str, rng: random.Random) -> Kill:
        """Let the job train for a while, hurt it, and wait for its end."""
        kill = Kill(number, part, step=self.steps()[-1] + rng.randint(0, 3))
        wait_for(lambda: self.steps()[-1] >= kill.step or self.process.poll() is not None, END_LIMIT)
        time.sleep(rng.uniform(0, 8))
        victim = self.victim(part)
        beat = json.loads((self.folder / "heartbeat.json").read_text())
        kill.phase, kill.step, kill.saved_before = beat["phase"], beat["step"], self.saved()
        began = time.monotonic()
        if victim is not None:
            victim.send_signal(signal.SIGTERM if part == "SIGTERM" else signal.SIGKILL)
        else:
            kill.broken.append("no process of this part")
            self.process.kill()
        self.end(kill, began)
        self.check_end(kill)
        return kill

    def resume(self, kill: Kill) -> bool:
        """Go on after ``kill``: the first new step is the one after the checkpoint."""
        seconds, kill.first_step_after = self.start(resume=True)
        if seconds is None:
            kill.broken.append("did not go on: " + self.output()[-500:])
            return False
        kill.seconds_to_resume = seconds
        if kill.first_step_after != kill.saved_after + 1:
            kill.broken.append(f"went on with step {kill.first_step_after} after a checkpoint of {kill.saved_after}")
        return True

    def run(self, kills: int, seed: int, among: list[str]) -> list[Kill]:
        """``kills`` kills of the parts ``among``, each in turn in a random order, then a SIGTERM."""
        rng, parts = random.Random(seed), []
        while len(parts) < kills:
            parts += rng.sample(among, len(among))
        done: list[Kill] = []
        seconds, first = self.start(resume=False)
        if seconds is None or first != 1:
            raise RuntimeError("the job never reached its first step: " + self.output()[-3000:])
        for number, part in enumerate([*parts[:kills], "SIGTERM"], start=1):
            kill = self.hurt(number, part, rng)
            went_on = part == "SIGTERM" or self.resume(kill)
            done.append(kill)
            with open(self.out / "kills.jsonl", "a") as file:
                file.write(json.dumps(asdict(kill)) + "\n")
            print(row(kill), flush=True)
            if not went_on:
                break
        return done


def row(kill: Kill) -> str:
    """One line of a Markdown table."""
    seconds = f"{kill.seconds_to_end:.1f} | {kill.seconds_to_clean:.1f} | {kill.seconds_to_resume:.0f}"
    return (
        f"| {kill.number} | {kill.part} | {kill.phase}, step {kill.step} | {kill.returncode} | {seconds} "
        f"| {kill.saved_after} | {kill.first_step_after or ''} | {'; '.join(kill.broken) or 'kept'} |"
    )


def summary(soak: Soak, kills: list[Kill], seed: int) -> dict:
    """What the soak shows. A step whose checkpoint was saved but whose metrics were not logged yet is not lost."""
    logged, saved = soak.steps(), soak.saved()
    unlogged = sorted(set(range(1, saved + 1)) - set(logged))
    torn = {kill.saved_after for kill in kills}
    return {
        "seed": seed,
        "kills": len([kill for kill in kills if kill.part != "SIGTERM"]),
        "last_step": saved,
        "steps_trained_again": len(logged) - len(set(logged)),
        "saved_but_not_logged": unlogged,
        "lost_steps": sorted(set(unlogged) - torn),
        "broken": [f"kill {kill.number} ({kill.part}): {problem}" for kill in kills for problem in kill.broken],
        "rows": [asdict(kill) for kill in kills],
    }


def soak(out: Path, kills: int, seed: int, among: list[str] | None = None, data: Path | None = None) -> dict:
    """Run a soak in ``out`` (new or empty); its summary, also in ``out``/soak.json."""
    out.mkdir(parents=True, exist_ok=True)
    job = Soak(out, data or jobs.prepare(out))
    try:
        result = summary(job, job.run(kills, seed, among or list(PARTS)), seed)
    finally:
        for process in jobs.descendants(str(job.folder)):
            process.kill()
    (out / "soak.json").write_text(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), help="all by default")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = soak(options.out.resolve(), options.kills, options.seed, options.parts)
    print(json.dumps({key: value for key, value in found.items() if key != "rows"}, indent=1))
    sys.exit(bool(found["broken"] or found["lost_steps"]))
