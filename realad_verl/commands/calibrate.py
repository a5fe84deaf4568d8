"""``realad calibrate``: heads, baselines and thresholds for one backbone, from image labels."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from realad_verl.commands import options
from realad_verl.commands.model_option import resolve_model
from realad_verl.commands.progress import progress
from realad_verl.errors import UserError, bad_value


def calibrate(
    data: Annotated[list[Path], typer.Argument(help="Parquet files of `realad prepare`, or folders that hold them.")],
    model: Annotated[str, options.model_option()],
    out: Annotated[Path, typer.Option(help="Folder of the calibration; a run that was stopped continues in it.")],
    recipe: Annotated[str, typer.Option(help="Recipe that calibration.yaml builds on.")] = "local/cgro_tiny_cpu",
    images: Annotated[
        int, typer.Option(help="At most this many images, half of them of each class; 0: all.", min=0)
    ] = 240,
    n: Annotated[int, typer.Option("--n", help="Responses an image, at temperature 1.", min=2)] = 8,
    baseline: Annotated[str, typer.Option(help="word or normal: what scoring.baseline will be.")] = "word",
    seed: Annotated[int, typer.Option(help="Seed of the choice of images and of the responses.", min=0)] = 0,
    engine: Annotated[
        str, typer.Option(help="Who generates: auto (vLLM where installed), vllm, transformers.")
    ] = "auto",
    batch_size: Annotated[int, typer.Option(help="Images a batch; a forward holds n responses of each.", min=1)] = 4,
    device: options.Device = "",
    gpu_memory: Annotated[
        float | None,
        typer.Option(help="Share of the device's memory for vLLM.", min=0.02, max=0.95, show_default="0.5, CPU: 0.15"),
    ] = None,
    max_new_tokens: options.MaxNewTokens = 256,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Choose the read-out and the thresholds of CGRO for MODEL on labelled images; no mask is read.

    Writes calibration.safetensors and calibration.yaml, which `realad train`, `localize` and `evaluate` take, and
    calibration.json and calibration.png, which say what it is worth.
    """
    if baseline not in ("word", "normal"):
        raise bad_value("--baseline", baseline, "word, normal")
    from realad_verl.calibrate.files import rows, write
    from realad_verl.calibrate.images import choose_images
    from realad_verl.calibrate.run import Settings
    from realad_verl.calibrate.run import calibrate as run
    from realad_verl.evaluate.engines import build_engine, choose_engine, model_identity
    from realad_verl.evaluate.store import ResultStore
    from realad_verl.recipes_dir import find_recipe

    find_recipe(recipe)
    files, chosen = _files(data), choose_engine(engine)
    found = choose_images(files, images or None, seed)
    model = resolve_model(model)
    settings = Settings(n=n, seed=seed, batch_size=batch_size, baseline=baseline)
    of_run: dict[str, Any] = {"data": [f"{file.resolve()}: {file.stat().st_size} bytes" for file in files]}
    of_run |= model_identity(model) | {"engine": chosen, "images": images, "n": n, "seed": seed}
    ResultStore(out, of_run | {"batch_size": batch_size, "max_new_tokens": max_new_tokens})
    from realad_verl.localize import Localizer

    device = options.read_device(device)
    memory = gpu_memory or (0.15 if device == "cpu" else 0.5)
    localizer = Localizer.from_pretrained(
        model, device=device, max_new_tokens=max_new_tokens, trust_remote_code=trust_remote_code
    )
    runs = build_engine(chosen, localizer, model, batch_size=batch_size * n, gpu_memory=memory, image_size=None)
    with progress(f"{len(found)} images, {n} responses each") as bar:
        sampled, read = (bar.add_task(title, total=len(found)) for title in ("responses, every head", "chosen heads"))
        made = run(
            found,
            runs,
            localizer,
            out,
            settings,
            on_sampled=lambda count: bar.advance(sampled, count),
            on_read=lambda count: bar.advance(read, count),
        )
    command = shlex.join(["realad", *sys.argv[1:]])
    content = write(made, out, recipe, command, localizer.model.config)
    if as_json:
        print(json.dumps({"out": str(out)} | content, indent=1))
    else:
        _print(rows(made), content, out)
    for doubt in content["doubts"]:
        typer.echo(f"warning: {doubt}", err=True)


def _files(given: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in given:
        inside = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not inside or not all(file.is_file() for file in inside):
            raise UserError(f"{path} is no parquet file and holds none. Give what `realad prepare` wrote.")
        found += inside
    return found


def _print(lines: list[tuple[str, str, str]], content: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    counts = content["images"]
    title = (
        f"{counts['normal']} normal and {counts['anomalous']} anomalous images, {content['responses_an_image']} each"
    )
    table = Table("on the calibration images", "default", "calibrated", title=title, title_justify="left")
    for line in lines:
        table.add_row(*line)
    console.print(table)
    names = ", ".join(f"{h['layer']}.{h['head']}" for h in content["heads"])
    halves = content["halves"]
    console.print(
        f"{len(content['heads'])} of {content['number_of_heads']} heads (layer.head): {names}\n"
        f"two halves of the images share {halves['overlap_of_choice']:.0%} of their choices; rank correlation "
        f"{halves['rank_correlation']:.2f}\n"
        f"written to {out}. Use it: realad train {out}/calibration.yaml, realad evaluate ... --calibration {out}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
