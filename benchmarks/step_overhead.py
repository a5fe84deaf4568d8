"""What a CGRO step costs over a stock verl GRPO step, and what one with eager attention, on the same stack.

    python benchmarks/step_overhead.py --train data/train.parquet [--rounds 2] [--steps 8] [--json]

Whole jobs of the local CPU recipe in turn, same prompts, same seed, a seed to every response: so all sample the same.

- stock: verl's own trainer, engine and worker;
- cgro: evidence read, reduced and logged, with ``w_cons = 0`` (the same rewards, hence the same updates);
- eager: cgro, but the attention comes from a second forward with ``output_attentions=True`` (``eager_evidence.py``).
  That it is the same evidence is checked: row by row in the job, and by the metrics of the first step here.

Compared are the phases that CGRO touches: old log-probs (which carry the read-out), advantage, actor update; generation
waits on a polling interval and is left out. A job's first step (warm-up) does not count. Ratios are of medians over all
counted steps.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PHASES = ("old_log_prob", "adv", "update_actor")
SAME_SAMPLES = ("realad.deterministic=true",)
COMMON = (*SAME_SAMPLES, "realad.w_cons=0", "realad.log.every=0")
VARIANTS = {
    "stock": (
        "trainer.v1.trainer_mode=sync",
        "actor_rollout_ref.model.model_type=language_model",
        "realad.evidence=false",
    ),
    "cgro": (),
    "eager": ("actor_rollout_ref.model.external_lib=eager_evidence",),
}


def run(name: str, arguments: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """One job; returns the metrics of each step."""
    command = [sys.executable, "-m", "realad_verl.cli", "train", arguments.recipe, *COMMON, *VARIANTS[name]]
    command += [f"data.train_files={arguments.train}", f"data.val_files={arguments.train}"]
    command += [f"trainer.total_training_steps={arguments.steps}", f"trainer.default_local_dir={folder}"]
    command += arguments.overrides
    paths = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with open(f"{folder}.log", "w") as log:
        try:
            subprocess.run(command, check=True, stdout=log, stderr=log, timeout=arguments.limit, env=environment)
        except subprocess.SubprocessError:
            print(Path(log.name).read_text()[-3000:], file=sys.stderr)
            raise
    return [json.loads(line)["data"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_evidence(cgro: dict[str, float], eager: dict[str, float]) -> None:
    """Raises RuntimeError where reward or evidence metrics of two jobs' first steps differ."""
    names = [n for n in cgro if n.startswith(("reward/", "evidence/")) and not n.endswith(("seconds", "step_share"))]
    other = [f"{n}: {cgro[n]} and {eager.get(n)}" for n in names if not abs(cgro[n] - eager.get(n, 9e9)) <= 1e-4]
    if other or "evidence/jaccard/mean" not in names:
        raise RuntimeError(f"cgro and eager jobs differ in their first step: {other or 'no evidence at all'}")


def summarise(counted: dict[str, list[dict]]) -> dict:
    """Medians of the phases and of their sum, for each variant, and their ratios to the first."""
    result: dict = {}
    for phase in (*PHASES, "together"):
        keys = [f"timing_s/{p}" for p in (PHASES if phase == "together" else [phase])]
        seconds = {name: [float(sum(r[key] for key in keys)) for r in records] for name, records in counted.items()}
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        base = medians[next(iter(medians))]
        result[phase] = {
            name: {"seconds": value, "ratio": value / base, "quartiles": _quartiles(seconds[name])}
            for name, value in medians.items()
        }
    inside = ("evidence/seconds", "evidence/reward_seconds")
    result["evidence_seconds_measured_inside"] = {
        name: statistics.median(sum(r[key] for key in inside) for r in records)
        for name, records in counted.items()
        if inside[0] in records[0]
    }
    return result


def ratios(runs: list[list[dict]], base: list[list[dict]]) -> list[float]:
    """Of each round: the median of the phases' sum over that of the first variant's job."""

    def median(records: list[dict]) -> float:
        return statistics.median(sum(r[f"timing_s/{phase}"] for phase in PHASES) for r in records[1:])

    return [median(run) / median(other) for run, other in zip(runs, base, strict=True)]


def _quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4) if len(values) > 1 else values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="a prepared train.parquet")
    parser.add_argument("--recipe", default="local/cgro_tiny_cpu")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--limit", type=float, default=1200, help="seconds a job may take")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="ratios are to the first")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for all variants")
    arguments = parser.parse_args()
    jobs: dict[str, list[list[dict[str, float]]]] = {name: [] for name in arguments.variants.split(",")}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.rounds):
            for name in jobs:
                jobs[name].append(run(name, arguments, Path(folder) / f"{name}{turn}"))
                print(f"round {turn + 1}: {name} done", file=sys.stderr)
            if {"cgro", "eager"} <= set(jobs):
                assert_same_evidence(jobs["cgro"][turn][0], jobs["eager"][turn][0])
    counted = {name: [record for records in runs for record in records[1:]] for name, runs in jobs.items()}
    report = summarise(counted) | {
        "ratio_by_round": {name: ratios(jobs[name], jobs[next(iter(jobs))]) for name in jobs},
        "steps_counted": {name: len(records) for name, records in counted.items()},
        "response_tokens": {n: statistics.fmean(r["response_length/mean"] for r in c) for n, c in counted.items()},
        # See train/wire.py: the reward moves the summary alone (6 floats); maps and tokens are for logging.
        "bytes_a_sample_for_the_reward": 24,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    for phase in (*PHASES, "together"):
        parts = [f"{name} {r['seconds']:.3f} s ({r['ratio']:.3f})" for name, r in report[phase].items()]
        print(f"{phase:>14}: {', '.join(parts)}")
    print(f"together, by round: {report['ratio_by_round']}")


if __name__ == "__main__":
    main()
