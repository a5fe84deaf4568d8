"""Where the start of a training job goes: CPU seconds of each process until the first step is done.

    python benchmarks/startup.py --train data/train.parquet [--variants tuned,untuned] [--rounds 1] [--json]

Each round runs one one-step job of ``local/cgro_tiny_cpu`` per variant and samples the job's processes twice a second:
Ray's, verl's and vLLM's, told by an environment variable that all inherit. CPU time rather than wall time says what a
cut saves, since other work on the machine hardly changes it; wall time is reported too. ``untuned`` takes back bytecode
compiled at installation, the forked vLLM worker and the short polling interval; it keeps the recipe's few processes,
without which the job would not fit a small machine.
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

MARK = "REALAD_STARTUP_JOB"
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


def processes(mark: str) -> list[psutil.Process]:
    """The job's processes, wherever Ray put them."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


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
    """The last seen title, CPU seconds, and first and last sight of each process of a job."""

    def __init__(self, mark: str):
        self.mark, self.began = mark, time.monotonic()
        self.seen: dict[int, dict] = {}

    def sample(self) -> None:
        now = round(time.monotonic() - self.began, 1)
        for process in processes(self.mark):
            try:
                with process.oneshot():
                    times, name, rss = process.cpu_times(), title(process.cmdline()), process.memory_info().rss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            record = self.seen.setdefault(process.pid, {"first_s": now, "peak_mib": 0.0})
            record |= {"title": name, "cpu_s": times.user + times.system, "last_s": now}
            record["peak_mib"] = max(record["peak_mib"], rss / 2**20)


def run_job(arguments: argparse.Namespace, variant: str, folder: Path) -> dict:
    """One job; its processes and phases up to the end of the first step."""
    environment, overrides = VARIANTS[variant]
    command = [sys.executable, "-m", "realad_verl.cli", "train", RECIPE, *JOB, *overrides, *arguments.overrides]
    command += [f"data.train_files={arguments.train}", f"data.val_files={arguments.train}"]
    command += [f"trainer.default_local_dir={folder}"]
    sampler, phases = Sampler(str(folder)), {}
    with open(f"{folder}.log", "w") as log:
        job = subprocess.Popen(command, env=os.environ | environment | {MARK: str(folder)}, stdout=log, stderr=log)
        metrics = folder / "metrics.jsonl"
        while job.poll() is None and not (metrics.exists() and metrics.read_text().endswith("\n")):
            sampler.sample()
            beat = folder / "heartbeat.json"
            if beat.exists():
                phases.setdefault(json.loads(beat.read_text())["phase"], round(time.monotonic() - sampler.began, 1))
            if time.monotonic() - sampler.began > arguments.limit:
                job.terminate()
            time.sleep(0.5)
        first_step = time.monotonic() - sampler.began
        code = job.wait(timeout=arguments.limit)
    if code:
        raise SystemExit(f"the job of variant '{variant}' failed: see {folder}.log")
    found = sorted(sampler.seen.values(), key=lambda p: -p["cpu_s"])
    total = sum(p["cpu_s"] for p in found)
    return {"wall_s": first_step, "cpu_s": total, "phases": phases, "processes": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="a prepared train.parquet")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--limit", type=float, default=900, help="seconds a job may take")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for all variants")
    arguments = parser.parse_args()
    names = arguments.variants.split(",")
    jobs: dict[str, list[dict]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.rounds):
            for name in names:
                jobs[name].append(run_job(arguments, name, Path(folder) / f"{name}{turn}"))
                print(f"round {turn + 1}: {name} {jobs[name][-1]['cpu_s']:.0f} CPU s", file=sys.stderr)
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
