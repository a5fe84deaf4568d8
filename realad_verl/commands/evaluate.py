"""``realad evaluate``: a model on a data set -> results.jsonl, maps, results.json."""

import json
from pathlib import Path
from typing import Annotated

import typer

from realad_verl.commands import options
from realad_verl.commands.model_option import model_or_tiny


def evaluate(
    dataset: Annotated[str, typer.Argument(help="Name of the data set; `realad prepare --list` names them.")],
    root: Annotated[Path, options.root_option()],
    out: Annotated[Path, typer.Option(help="Folder of this run; a run that was stopped continues in it.")],
    model: Annotated[str | None, options.model_option("the tiny backbone of this package")] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of the data set.", show_default="the data set's test split")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="At most this many images, in turn from each category and class.", min=1)
    ] = None,
    image_size: Annotated[
        int, typer.Option(help="Side of the square that the model sees; 0: images as they are.", min=0)
    ] = 420,
    batch_size: options.BatchSize = 8,
    engine: Annotated[
        str, typer.Option(help="Who generates: auto (vLLM where installed), vllm, transformers.")
    ] = "auto",
    device: options.Device = "",
    gpu_memory: Annotated[
        float | None,
        typer.Option(help="Share of the device's memory for vLLM.", min=0.02, max=0.95, show_default="0.5, CPU: 0.15"),
    ] = None,
    max_new_tokens: options.MaxNewTokens = 256,
    samples: Annotated[
        int, typer.Option(help="Answers sampled at temperature 1 beside the greedy one, for Sampled ACC.", min=0)
    ] = 0,
    method: options.Method = None,
    calibration: options.Calibration = None,
    shard: Annotated[
        str | None,
        typer.Option(help="Do part I of N (same --out); the last to finish writes results.json.", metavar="I/N"),
    ] = None,
    pixel_size: Annotated[
        str, typer.Option(help="'mask': map resized to mask size. N: map and mask resized to N x N.")
    ] = "mask",
    mask_levels: Annotated[
        str, typer.Option(help="Mask values that are defect: auto (all levels found), nonzero, inverted, or 100,255.")
    ] = "auto",
    white: Annotated[float | None, options.white_option("one for the set, from a first pass")] = None,
    predicted_normal: Annotated[
        str, typer.Option(help="keep or zero the map of an image called normal in the headline pixel figures.")
    ] = "keep",
    fpr_limit: Annotated[float, typer.Option(help="AUPRO's integration limit.")] = 0.3,
    threshold_from: Annotated[
        Path | None,
        typer.Option(help="Run on validation data that gives the thresholds.", show_default="oracle, and labelled so"),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="Refuse images that this prepared directory (or manifest.json) holds; may be repeated."),
    ] = None,
    drop_overlap: Annotated[
        bool, typer.Option("--drop-overlap", help="Leave the images of --against out instead of refusing.")
    ] = False,
    references: Annotated[
        Path | None, typer.Option(help='Reference reasoning: JSON lines {"id": ..., "reasoning": ...}.')
    ] = None,
    sbert_model: Annotated[
        str | None, typer.Option(help="Sentence-transformers model.", show_default="all-MiniLM-L6-v2, offline")
    ] = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Evaluate MODEL on DATASET: decision, score, reasoning and anomaly map of every image, and all metrics."""
    from realad_verl.commands.progress import counter, progress
    from realad_verl.evaluate.evaluation import Evaluation
    from realad_verl.evaluate.summary import SummaryConfig
    from realad_verl.report.page import versions
    from realad_verl.report.terminal import print_results

    options.read_method(method, calibration or "none")  # a mistake is told before anything is read
    model = model_or_tiny(model)
    pixels = options.read_pixel_size(pixel_size)
    run = Evaluation(
        dataset=dataset,
        root=root,
        model=model,
        out=out,
        split=split,
        limit=limit,
        image_size=image_size or None,
        batch_size=batch_size,
        engine=engine,
        samples_per_image=samples,
        device=options.read_device(device),
        gpu_memory=gpu_memory,
        max_new_tokens=max_new_tokens,
        method=options.read_method(method, calibration, model),
        shard=shard,
        mask_levels=mask_levels,
        white=white,
        summary=SummaryConfig(pixels, predicted_normal, fpr_limit, threshold_from),  # type: ignore[arg-type]
        against=tuple(against or ()),
        drop_overlap=drop_overlap,
        references=references,
        sbert_model=sbert_model,
        trust_remote_code=trust_remote_code,
    )
    images = len(run.samples)
    with progress(f"{dataset}, {images} images") as bars:
        run.answer(counter(bars, "answers", len(run.of_this_shard), len(run.todo)))
        results = run.finish(counter(bars, "metrics", images), versions=versions())
    if results is None:
        state = {"out": str(out), "finished": False, "missing": run.missing}
        print(json.dumps(state) if as_json else f"This part is done; {run.missing} images are left to other shards.")
    elif as_json:
        print(json.dumps({"out": str(out), "finished": True} | results, indent=1, ensure_ascii=False))
    else:
        print_results(results, out)
