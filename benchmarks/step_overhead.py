"""What a CGRO step costs over a stock verl GRPO step, on the same stack, prompts and seed.

    python benchmarks/step_overhead.py --train data/train.parquet [--rounds 2] [--steps 8] [--json]

Whole jobs of the local CPU recipe in turn: stock (verl's own trainer, engine and worker), CGRO with ``w_cons = 0``
(evidence read, reduced and logged; the same rewards, hence the same updates), stock, CGRO, ... Compared are the phases
that CGRO touches: old log-probs (which carry the read-out), advantage, actor update; generation waits on a polling
interval and is left out. A job's first step (warm-up) does not count. Ratios are of medians over all counted steps.
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
STOCK = (
    "trainer.v1.trainer_mode=sync",
    "actor_rollout_ref.model.model_type=language_model",
    "realad.w_cons=0",
    "realad.evidence=false",
)
CGRO = ("realad.w_cons=0", "realad.log.every=0")


def run(variant: tuple[str, ...], arguments: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """One job; returns the phase seconds of each counted step."""
    command = [sys.executable, "-m", "realad_verl.cli", "train", arguments.recipe, *variant]
    command += [f"data.train_files={arguments.train}", f"data.val_files={arguments.train}"]
    command += [f"trainer.total_training_steps={arguments.steps}", f"trainer.default_local_dir={folder}"]
    command += arguments.overrides
    with open(f"{folder}.log", "w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, timeout=arguments.limit)
    records = [json.loads(line)["data"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    keys = [f"timing_s/{phase}" for phase in PHASES]
    extra = ("evidence/seconds", "evidence/reward_seconds", "prompt_length/mean", "response_length/mean")
    return [{key: r[key] for key in (*keys, *extra) if key in r} for r in records[1:]]


def summarise(stock: list[dict], cgro: list[dict]) -> dict:
    """Medians and ratios of the phases and of their sum."""
    result = {}
    for phase in PHASES:
        key = f"timing_s/{phase}"
        a, b = (statistics.median(r[key] for r in records) for records in (stock, cgro))
        result[phase] = {"stock_s": a, "cgro_s": b, "ratio": b / a}
    totals = [[sum(r[f"timing_s/{p}"] for p in PHASES) for r in records] for records in (stock, cgro)]
    a, b = map(statistics.median, totals)
    result["together"] = {"stock_s": a, "cgro_s": b, "ratio": b / a, "spread_s": [_quartiles(t) for t in totals]}
    parts = [r["evidence/seconds"] + r["evidence/reward_seconds"] for r in cgro]
    result["evidence_seconds_measured_inside"] = statistics.median(parts)
    return result


def _quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4) if len(values) > 1 else values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="a prepared train.parquet")
    parser.add_argument("--recipe", default="local/cgro_tiny_cpu")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--limit", type=float, default=1200, help="seconds a job may take")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for both variants")
    arguments = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {"stock": [], "cgro": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.rounds):
            for name, variant in (("stock", STOCK), ("cgro", CGRO)):
                results[name] += run(variant, arguments, Path(folder) / f"{name}{turn}")
                print(f"round {turn + 1}: {name} done", file=sys.stderr)
    report = summarise(results["stock"], results["cgro"])
    report |= {
        "steps_counted": {name: len(records) for name, records in results.items()},
        # realad_verl.verl_ext.wire: the reward moves the summary alone (6 floats); maps and tokens are for logging.
        "bytes_a_sample_for_the_reward": 24,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    for phase in (*PHASES, "together"):
        r = report[phase]
        print(f"{phase:>14}: stock {r['stock_s']:.3f} s, CGRO {r['cgro_s']:.3f} s, ratio {r['ratio']:.3f}")


if __name__ == "__main__":
    main()
