"""Seconds of a step, part by part: a range from sizes and from what others have published of such runs.

Nothing here was measured on a GPU. Below, the fast and the slow end of each quantity and where it is from.
"""

from dataclasses import dataclass

from realad_verl.verl_ext.recipe.problem import Setup

GIB, MIB = 1024**3, 1024**2
DTYPE_BYTES = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2}
# Dense bf16 peak in TFLOP/s and memory bandwidth in TB/s.
GPUS = {"A100": (312.0, 2.0), "H100": (989.0, 3.35)}
# Share of the peak in log-probs and updates. Fast: 0.33 on H100 (verl#965). Slow: 2.3 to 2.7 %, a 9B vision-language
# model on 8 H800 (verl#7203).
MFU = (0.33, 0.025)
# Share of the memory bandwidth while decoding [ours].
DECODING = (0.6, 0.15)
# GB/s of weights into the rollout. Slow: 3.5 s for the 9B model (verl#7203). Fast: a PCIe 4 link.
SYNC = (25.0, 5.0)
# Evidence over the log-prob forward. Fast: measured on a CPU (docs/scaling.md); slow: by counting kernel launches.
EVIDENCE = (0.04, 0.45)


@dataclass(frozen=True)
class Line:
    """One quantity: what it is, its value in ``unit``, and the formula with the numbers in it.

    ``low``: where the quantity is a range, its lower end; ``value`` is then the upper one.
    """

    name: str
    value: float
    unit: str
    formula: str
    low: float | None = None

    def text(self) -> str:
        """The line for a person."""
        amount = f"{self.value:,.1f}" if self.low is None else f"{self.low:,.1f} to {self.value:,.1f}"
        return f"  {self.name:<28}{amount:>16} {self.unit:<12} = {self.formula}"


def speed(s: Setup) -> list[Line]:
    """The parts of a step for each kind of GPU; empty on a CPU and where the model's sizes are not known."""
    if s.facts is None or s.config.trainer.device == "cpu":
        return []
    return [line for name in GPUS for line in _step(s, name)]


def _step(s: Setup, name: str) -> list[Line]:
    m = s.facts
    assert m is not None
    peak, bandwidth = GPUS[name]
    responses = s.config.data.train_batch_size * s.rollout.n
    longest = s.config.data.max_response_length
    tokens = responses * (s.config.data.max_prompt_length + longest)

    def compute(part: str, flop_a_token: float, why: str) -> Line:
        fast, slow = (tokens * flop_a_token * m.parameters / (s.n_gpus * peak * 1e12 * share) for share in MFU)
        formula = f"{tokens:,.0f} tokens (all of full length) x {flop_a_token:g} x {m.parameters:.3g} FLOP {why}"
        return Line(part, slow, "s", f"{formula}, MFU {MFU[0]} to {MFU[1]}", fast)

    decode = m.parameters * DTYPE_BYTES[s.rollout.dtype] / s.rollout.tensor_model_parallel_size / (bandwidth * 1e12)
    generation = Line(
        "generation",
        longest * decode / DECODING[1],
        "s",
        f"{longest} tokens one after the other x {decode * 1e3:.2f} ms to read the weights, at {DECODING[0]} to "
        f"{DECODING[1]} of {bandwidth:g} TB/s",
        longest * decode / DECODING[0],
    )
    log_probs = compute("log-probs", 2, "forward")
    # Backward through frozen weights needs the gradient of the activations alone.
    backward = 2 if s.model.lora_rank else 4
    recompute = 2 if s.model.enable_gradient_checkpointing else 0
    parts = [generation, log_probs]
    if s.evidence:
        low, high = log_probs.low or 0.0, log_probs.value
        why = f"{EVIDENCE[0]} to {EVIDENCE[1]} of log-probs"
        parts.append(Line("evidence", high * EVIDENCE[1], "s", why, low * EVIDENCE[0]))
    if s.needs_reference:
        parts.append(compute("reference log-probs", 2, "forward"))
    parts.append(compute("update", 2 + backward + recompute, f"(2 + {backward} backward + {recompute} recompute)"))
    gigabytes = m.parameters * DTYPE_BYTES[s.rollout.dtype] / 1e9
    parts.append(
        Line("weight sync", gigabytes / SYNC[1], "s", f"{gigabytes:.1f} GB at {SYNC[0]:g} to {SYNC[1]:g} GB/s",
             gigabytes / SYNC[0])
    )  # fmt: skip
    hidden = parts[1:] if s.is_separate else parts
    why = "sum; generation runs beside it, on other GPUs" if s.is_separate else "sum of the above"
    total = Line("a step", sum(p.value for p in hidden), "s", why, sum(p.low or 0.0 for p in hidden))
    return [Line(f"{p.name}, {name}", p.value, p.unit, p.formula, p.low) for p in (*parts, total)]
