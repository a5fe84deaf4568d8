"""What reading attention costs, against a plain forward and against eager ``output_attentions``.

Run: ``OMP_NUM_THREADS=1 python benchmarks/evidence_overhead.py [--json]``. One sequence of T tokens through a language
model of Qwen2.5-0.5B's layer shape (fewer layers, small vocabulary, random weights), no gradients, sdpa, one thread.
The queries are the last R tokens, the columns an image of 15 x 15 and 8 words at the front. Variants:

- plain: the forward alone;
- readout: the same forward with the read-out on;
- eager: attn_implementation "eager" with output_attentions, then the same rows averaged over heads and layers.

Times are CPU seconds, interleaved; a ratio is the median over the rounds of time / plain's time of that round. Memory
is the peak of a process of its own, above what it held before the forward.
"""

import json
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from _timing import hardware, in_own_process, interleaved, peak_memory, ratio
from rich.console import Console
from rich.progress import track
from rich.table import Table

from realad_verl.attention.readout import AttentionReadout, RowRequest

COLUMNS = 15 * 15 + 8


def build_model(layers: int, vocabulary: int = 1024, mlp: int = 4864) -> Any:
    """A random decoder of Qwen2.5-0.5B's layer shape; ``mlp`` is the width of its feed-forward part."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=896,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        attn_implementation="sdpa",
    )
    return Qwen2ForCausalLM(config).eval()


def variant(model: Any, name: str, tokens: int, rows: int) -> Callable[[], list[torch.Tensor]]:
    """A call that runs one forward of ``tokens`` tokens and returns the rows [R, C] it read (none for plain)."""
    ids = torch.randint(0, 1024, (1, tokens), generator=torch.Generator().manual_seed(0))
    request = RowRequest(0, 0, tokens, torch.arange(tokens - rows, tokens), torch.arange(COLUMNS))
    readout = AttentionReadout(model)

    def plain():
        model.set_attn_implementation("sdpa")
        model(input_ids=ids, use_cache=False)
        return []

    def reading():
        model.set_attn_implementation("sdpa")
        with readout.reading([request]) as reading:
            model(input_ids=ids, use_cache=False)
        return reading.rows()

    def eager():
        model.set_attn_implementation("eager")
        layers = model(input_ids=ids, use_cache=False, output_attentions=True).attentions
        return [sum(layer[0, :, request.queries, :COLUMNS].mean(0) for layer in layers) / len(layers)]

    return torch.no_grad()({"plain": plain, "eager": eager}.get(name, reading))


def measure_time(layers: int, tokens: int, rows: list[int], rounds: int, variants: list[str]) -> list[dict[str, Any]]:
    """One record per variant: median seconds and ratio to the plain forward."""
    model = build_model(layers)
    calls = {("plain", 0): variant(model, "plain", tokens, 1)}
    for count in rows:
        some = [name for name in variants if name != "eager" or count == rows[-1]]  # its cost is not in the rows
        calls |= {(name, count): variant(model, name, tokens, count) for name in some}
    seconds = interleaved({f"{name} {count}": call for (name, count), call in calls.items()}, rounds)
    return [
        {
            "tokens": tokens,
            "variant": name,
            "rows": count,
            "seconds": sorted(seconds[f"{name} {count}"])[rounds // 2],
            "time_ratio": ratio(seconds, f"{name} {count}", "plain 0"),
        }
        for name, count in calls
    ]


def measure_memory(layers: int, tokens: int, rows: int, name: str) -> dict[str, float]:
    """Peak memory of one forward, and of the whole process, in MiB; to be run in a process that did nothing else."""
    model = build_model(layers)
    variant(model, name, 256, 16)()  # libraries and thread pools set up
    return peak_memory(variant(model, name, tokens, rows))


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    tokens: Annotated[list[int], typer.Option(help="Sequence lengths.")] = [512, 1024, 2048, 4096],  # noqa: B006
    rows: Annotated[list[int], typer.Option(help="Query counts; those below T are run.")] = [256, 1024],  # noqa: B006
    layers: Annotated[int, typer.Option(help="Layers of the model; the ratios hardly depend on it.")] = 2,
    rounds: Annotated[int, typer.Option(help="Timed rounds of all variants.")] = 5,
    variants: Annotated[list[str], typer.Option(help="Beside plain.")] = ["readout", "eager"],  # noqa: B006
    memory: Annotated[bool, typer.Option(help="Measure memory too.")] = True,
    memory_of: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    torch.set_num_threads(1)
    if memory_of:
        print(json.dumps(measure_memory(layers, tokens[0], rows[0], memory_of)))
        return
    records = []
    for length in track(tokens, "sequence lengths", console=Console(stderr=True)):
        counts = [count for count in rows if count < length]
        for record in measure_time(layers, length, counts, rounds, variants):
            records.append(record)
            if not memory:
                continue
            own = ["--memory-of", record["variant"], "--tokens", str(length), "--layers", str(layers)]
            record |= in_own_process(__file__, [*own, "--rows", str(record["rows"] or 1)])
    for record in records if memory else []:
        plain = next(r for r in records if r["variant"] == "plain" and r["tokens"] == record["tokens"])
        record["memory_ratio"] = record["above_model_mib"] / plain["above_model_mib"]
        record["peak_ratio"] = record["peak_mib"] / plain["peak_mib"]
    if as_json:
        print(json.dumps({"hardware": hardware(), "layers": layers, "rounds": rounds, "records": records}, indent=1))
        return
    table = Table("T", "variant", "R", "CPU s", "time / plain", "MiB above model", "memory / plain", "process / plain")
    for r in records:
        numbers = [f"{r['seconds']:.2f}", f"{r['time_ratio']:.2f}"]
        if memory:
            numbers += [f"{r['above_model_mib']:.0f}", f"{r['memory_ratio']:.2f}", f"{r['peak_ratio']:.2f}"]
        table.add_row(str(r["tokens"]), r["variant"], str(r["rows"]), *numbers)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
