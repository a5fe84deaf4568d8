"""A model, not a measurement: what the evidence costs a training step on 1 to 1,024 GPUs.

    python benchmarks/scaling_model.py [--step-s 100] [--forward-s 15] [--samples 16] [--trainer-ms 0.015] [--json]

Weak scaling: every GPU has the same number of samples a step, so a step's time stays the same but for what one process
does for all samples. docs/scaling.md says where the defaults come from and what the model leaves out.
"""

import argparse
import json

GPUS = (1, 2, 8, 64, 256, 1024)
WIRE_BYTES = 36 + 160  # realad_verl.verl_ext.train.wire: summary and verdict, 9 floats, and the notes


def row(gpus: int, a: argparse.Namespace) -> dict[str, float]:
    """Seconds and megabytes of one step."""
    samples = gpus * a.samples
    reduction = a.samples * a.reasoning_tokens * a.reduce_us / 1e6
    worker = a.readout_share * a.forward_s + reduction
    trainer = samples * a.trainer_ms / 1e3
    # The trainer reads rm_scores (4 bytes a token) and writes them.
    traffic = samples * (WIRE_BYTES + 8 * a.response_tokens)
    # Map and tokens of every sample, in a step that logs: realad_verl.verl_ext.train.wire.
    detail = samples * 4 * (2 + a.image_tokens + 1 + 5 * a.reasoning_tokens)
    return {
        "gpus": gpus,
        "samples": samples,
        "worker_s": worker,
        "trainer_s": trainer,
        "share_of_step": (worker + trainer) / (a.step_s + worker + trainer),
        "wire_kb": samples * WIRE_BYTES / 1e3,
        "trainer_mb": traffic / 1e6,
        "detail_mb": detail / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step-s", type=float, default=100.0, help="a step without evidence; an assumption")
    parser.add_argument("--forward-s", type=float, default=15.0, help="of it the log-prob forward; an assumption")
    parser.add_argument("--readout-share", type=float, default=0.03, help="read-out over the forward; measured")
    parser.add_argument("--reduce-us", type=float, default=3.5, help="reduction of a reasoning token; measured")
    parser.add_argument("--trainer-ms", type=float, default=0.015, help="a sample in the one trainer; measured")
    parser.add_argument("--samples", type=int, default=16, help="samples a GPU and step")
    parser.add_argument("--response-tokens", type=int, default=512)
    parser.add_argument("--reasoning-tokens", type=int, default=256)
    parser.add_argument("--image-tokens", type=int, default=225)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [row(gpus, arguments) for gpus in GPUS]
    # trainer_s = 5 % of the step
    limit = 0.05 * arguments.step_s / (arguments.samples * arguments.trainer_ms / 1e3)
    if arguments.json:
        print(json.dumps({"settings": vars(arguments), "rows": rows, "gpus_at_5_percent": limit}, indent=1))
        return
    print("".join(f"{name:>15}" for name in rows[0]))
    for values in rows:
        print("".join(f"{value:>15,.4g}" for value in values.values()))
    print(f"the trainer's part reaches 5 % of a step at {limit:,.0f} GPUs")


if __name__ == "__main__":
    main()
