"""Where the start of a training job goes: CPU seconds of each process until the first step is done.

    python benchmarks/startup.py --train data/train.parquet [--variants tuned,untuned] [--rounds 1] [--json]

Each round runs one one-step job of ``local/cgro_tiny_cpu`` per variant and samples the job's processes (the launcher's,
Ray's, verl's and vLLM's) twice a second; ``--watch PID`` samples one that was started otherwise. CPU time rather than
wall time says what a cut saves, since other work on the machine hardly changes it; wall time is reported too.
``untuned`` takes back bytecode compiled at installation, the forked vLLM worker and the short polling interval; it
keeps the recipe's few processes, without which the job would not fit a small machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from _timing import hardware

RECIPE = "local/cgro_tiny_cpu"
JOB = ("trainer.total_training_steps=1", "data.train_batch_size=4", "actor_rollout_ref.rollout.n=4")
# Environment and overrides of each variant. An empty prefix folder hides the compiled packages, as after an
# installation by uv with Python forbidden to write bytecode (many container images). "01" is one thread to OpenMP too,
# but not what the plugin asks for before it forks vLLM's worker.
UNTUNED = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": "/nonexistent", "OMP_NUM_THREADS": "01"}
VARIANTS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "tuned": ({}, ()),
    "untuned": (UNTUNED, ("realad.poll_interval=2.0",)),
}


def title(command: list[str]) -> str:
    """What a process is, from its command line: Ray's and vLLM's titles, or the script that Python runs."""
    text = " ".join(command)
    if text.startswith(("ray::", "VLLM::")):
        return text.split("(")[0].split(".")[0].strip()
    for part in command[1:]:
        if part.endswith(".py") or part.startswith(("realad_verl", "multiprocessing")):
            return Path(part).name
    return Path(command[0]).name if command else "?"


class Sampler:
    """The last seen title, CPU seconds, peak memory and first sight of a job's processes, all children of the first."""

    def __init__(self, job: psutil.Process):
        self.job = job
        self.seen: dict[int, dict] = {}

    def elapsed(self) -> float:
        """Seconds since the job's first process began."""
        return time.time() - self.job.create_time()

    def sample(self) -> None:
        now = round(self.elapsed(), 1)
        for process in [self.job, *self.job.children(recursive=True)]:
            try:
                with process.oneshot():
                    times, name, rss = process.cpu_times(), title(process.cmdline()), process.memory_info().rss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            record = self.seen.setdefault(process.pid, {"first_s": now, "peak_mib": 0.0})
            record |= {"title": name, "cpu_s": times.user + times.system}
            record["peak_mib"] = max(record["peak_mib"], rss / 2**20)


def follow(job: psutil.Process, folder: Path, limit: float) -> dict:
    """A job's processes and phases up to the end of its first step; raises TimeoutError after ``limit`` seconds."""
    sampler, phases = Sampler(job), {}
    metrics, beat = folder / "metrics.jsonl", folder / "heartbeat.json"
    while not (metrics.exists() and metrics.read_text().endswith("\n")):
        sampler.sample()
        if beat.exists():
            phases.setdefault(json.loads(beat.read_text())["phase"], round(sampler.elapsed(), 1))
        if job.status() == psutil.STATUS_ZOMBIE:
            raise RuntimeError(f"the job ended before its first step: see {folder}.log")
        if sampler.elapsed() > limit:
            raise TimeoutError(f"no step within {limit:.0f} s: see {folder}.log")
        time.sleep(0.5)
    found = sorted(sampler.seen.values(), key=lambda p: -p["cpu_s"])
    return {"wall_s": sampler.elapsed(), "cpu_s": sum(p["cpu_s"] for p in found), "phases": phases, "processes": found}


def run_job(arguments: argparse.Namespace, variant: str, folder: Path) -> dict:
    """One job to its end."""
    environment, overrides = VARIANTS[variant]
    command = [sys.executable, "-m", "realad_verl.cli", "train", RECIPE, *JOB, *overrides, *arguments.overrides]
    command += [f"data.train_files={arguments.train}", f"data.val_files={arguments.train}"]
    command += [f"trainer.default_local_dir={folder}"]
    with open(f"{folder}.log", "w") as log:
        job = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
        try:
            result = follow(psutil.Process(job.pid), folder, arguments.limit)
            if code := job.wait(timeout=arguments.limit):
                raise RuntimeError(f"the job of variant '{variant}' ended with code {code}")
        except BaseException:
            job.terminate()
            print(Path(f"{folder}.log").read_text()[-3000:], file=sys.stderr)
            raise
    return result


def watch(pid: int, limit: float) -> dict:
    """The same of a job that somebody else has just started."""
    job = psutil.Process(pid)
    name = "trainer.default_local_dir="
    folder = next(part.removeprefix(name) for part in job.cmdline() if part.startswith(name))
    return follow(job, Path(folder), limit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", help="a prepared train.parquet")
    parser.add_argument(
        "--watch", type=int, metavar="PID", help="start nothing; sample the `realad train` with this pid"
    )
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--limit", type=float, default=900, help="seconds a job may take")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for all variants")
    arguments = parser.parse_args()
    jobs: dict[str, list[dict]] = {"watched": []} if arguments.watch else {n: [] for n in arguments.variants.split(",")}
    if arguments.watch:
        jobs["watched"].append(watch(arguments.watch, arguments.limit))
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(0 if arguments.watch else arguments.rounds):
            for name, runs in jobs.items():
                runs.append(run_job(arguments, name, Path(folder) / f"{name}{turn}"))
                print(f"round {turn + 1}: {name} {runs[-1]['cpu_s']:.0f} CPU s", file=sys.stderr)
    if arguments.json:
        print(json.dumps({"hardware": hardware(), "jobs": jobs}, indent=1))
        return
    for name, runs in jobs.items():
        cpu, wall = (statistics.median(run[key] for run in runs) for key in ("cpu_s", "wall_s"))
        print(
            f"\n{name}: {cpu:.0f} CPU s, {wall:.0f} s of wall time to the end of the first step (median of {len(runs)})"
        )
        print("  phases begin at " + ", ".join(f"{phase} {at:.0f} s" for phase, at in runs[0]["phases"].items()))
        for p in runs[0]["processes"]:
            if p["cpu_s"] >= 0.5:
                print(f"  {p['cpu_s']:6.1f} CPU s {p['peak_mib']:6.0f} MiB  from {p['first_s']:5.1f} s  {p['title']}")


if __name__ == "__main__":
    main()
