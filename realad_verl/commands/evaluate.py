"""``realad evaluate``: a model on a data set -> results.jsonl, maps, results.json."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from realad_verl.commands.model_option import HELP, resolve_model
from realad_verl.errors import bad_value

if TYPE_CHECKING:
    from realad_verl.evaluate.engines import Engine


def evaluate(
    dataset: Annotated[str, typer.Argument(help="Name of the data set; `realad prepare --list` names them.")],
    root: Annotated[Path, typer.Option(help="Directory that holds the data set in its original layout.")],
    model: Annotated[str, typer.Option(help=HELP)],
    out: Annotated[Path, typer.Option(help="Folder of this run; a run that was stopped continues in it.")],
    split: Annotated[
        str | None, typer.Option(help="Split of the data set.", show_default="the data set's test split")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="At most this many images, in turn from each category and class.", min=1)
    ] = None,
    image_size: Annotated[
        int, typer.Option(help="Side of the square that the model sees; 0: images as they are.", min=0)
    ] = 420,
    batch_size: Annotated[int, typer.Option(help="Images a batch.", min=1)] = 8,
    engine: Annotated[
        str, typer.Option(help="Who generates: auto (vLLM where installed), vllm, transformers.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...", show_default="cuda, else cpu")] = "",
    gpu_memory: Annotated[
        float | None,
        typer.Option(help="Share of the device's memory for vLLM.", min=0.02, max=0.95, show_default="0.5, CPU: 0.15"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest response, in tokens.", min=1)] = 256,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A setting of the method, such as scoring.select=all; may be repeated.", metavar="KEY=VALUE"),
    ] = None,
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
    white: Annotated[
        float | None,
        typer.Option(
            help="Images of more than 8 bits: the pixel value that becomes white.",
            show_default="one for the set, from a first pass",
        ),
    ] = None,
    predicted_normal: Annotated[
        str, typer.Option(help="keep or zero the map of an image called normal in the headline pixel figures.")
    ] = "keep",
    fpr_limit: Annotated[float, typer.Option(help="AUPRO's integration limit.")] = 0.3,
    threshold_from: Annotated[
        Path | None,
        typer.Option(help="Run on validation data that gives the thresholds.", show_default="oracle, and labelled so"),
    ] = None,
    references: Annotated[
        Path | None, typer.Option(help='Reference reasoning: JSON lines {"id": ..., "reasoning": ...}.')
    ] = None,
    sbert_model: Annotated[
        str | None, typer.Option(help="Sentence-transformers model.", show_default="all-MiniLM-L6-v2, offline")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code of the model folder.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Evaluate MODEL on DATASET: decision, score, reasoning and anomaly map of every image, and all metrics."""
    from realad_verl.data.datasets import get_dataset
    from realad_verl.data.depth import find_depth
    from realad_verl.data.files import written
    from realad_verl.data.images import deep_extremes
    from realad_verl.data.masks import MaskSetting
    from realad_verl.evaluate.engines import choose_engine, model_identity
    from realad_verl.evaluate.runner import evaluate_samples, finish, found_files, limited, pending, read_references
    from realad_verl.evaluate.store import ResultStore, parse_shard
    from realad_verl.evaluate.summary import SummaryConfig
    from realad_verl.report.page import versions

    config = SummaryConfig(_pixel_size(pixel_size), predicted_normal, fpr_limit, threshold_from)  # type: ignore[arg-type]
    part, texts = parse_shard(shard), read_references(references) if references else None
    of_masks = MaskSetting(mask_levels)
    settings_of_method = _method(method or [])
    chosen = choose_engine(engine)
    source = get_dataset(dataset)
    split = split or source.test_split
    everything = source.samples(root)
    in_split = source.of_split(everything, split)
    samples, cores = limited(in_split, limit), len(os.sched_getaffinity(0))
    depth = find_depth([sample.path for sample in everything], deep_extremes, white, cores)
    model = resolve_model(model)
    settings: dict[str, Any] = {"dataset": dataset, "root": written(root.resolve()), "split": split}
    settings |= model_identity(model) | {"engine": chosen, "image_size": image_size or "as it is"}
    settings |= {} if depth is None else {"depth": depth.to_dict()}
    settings |= {"max_new_tokens": max_new_tokens, "method": settings_of_method.to_dict()}
    store = ResultStore(out, settings)
    todo = pending(samples, {row["id"] for row in store.rows()}, part)
    with _progress(f"{dataset}, {len(samples)} images") as bar:
        step = bar("answers", sum(1 for _ in samples[part[0] - 1 :: part[1]]), len(todo))
        if todo:
            import torch

            of_model = {"method": settings_of_method, "max_new_tokens": max_new_tokens}
            of_model["trust_remote_code"] = trust_remote_code
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            gpu_memory = gpu_memory or (0.15 if device == "cpu" else 0.5)
            of_engine = {"batch_size": batch_size, "gpu_memory": gpu_memory, "image_size": image_size or None}
            runs = _engine(chosen, model, device, of_model, of_engine)
            evaluate_samples(
                todo, runs, store, root, image_size=image_size or None, depth=depth, batch_size=batch_size, shard=part,
                on_image=step,
            )  # fmt: skip
        extra = {"dataset": dataset, "split": split, "limit": limit, "settings": settings, "versions": versions()}
        extra |= {"n_in_split": len(in_split)} | found_files(source, root, everything, samples, store.rows())
        count = bar("metrics", len(samples), len(samples))
        results = finish(
            samples, store, config, mask_setting=of_masks, references=texts, sbert_model=sbert_model, extra=extra,
            on_image=count, workers=cores,
        )  # fmt: skip
    if results is None:
        missing = len(samples) - len({row["id"] for row in store.rows()} & {sample.id for sample in samples})
        state = {"out": str(out), "finished": False, "missing": missing}
        print(json.dumps(state) if as_json else f"This part is done; {missing} images are left to other shards.")
    elif as_json:
        print(json.dumps({"out": str(out), "finished": True} | results, indent=1, ensure_ascii=False))
    else:
        _print_results(results, out)


def _engine(name: str, model: str, device: str, localizer: dict[str, Any], options: dict[str, Any]) -> "Engine":
    from realad_verl.evaluate.engines import build_engine
    from realad_verl.localize import Localizer

    return build_engine(name, Localizer.from_pretrained(model, device=device, **localizer), model, **options)


def _method(pairs: list[str]) -> Any:
    from omegaconf import OmegaConf

    from realad_verl.method.config import MethodConfig

    for pair in pairs:
        if "=" not in pair or "." not in pair.split("=", 1)[0]:
            raise bad_value("method", pair, "SECTION.KEY=VALUE, such as scoring.select=all or readout.layers=[-1,-2]")
    return MethodConfig.from_dict(OmegaConf.to_container(OmegaConf.from_dotlist(pairs)))  # type: ignore[arg-type]


def _pixel_size(text: str) -> int | None:
    if text == "mask":
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise bad_value("pixel_size", text, "'mask', or a size >= 1 in pixels")


class _progress:
    """Progress bars on stderr with the time that is left; entering gives a function that adds one."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, TextColumn("left"), Remaining(), console=Console(stderr=True))
        self._bar.console.print(title, markup=False)

    def __enter__(self) -> Any:
        self._bar.start()

        def add(name: str, total: int, left: int) -> Any:
            task = self._bar.add_task(name, total=total, completed=total - left)
            return lambda: self._bar.advance(task)

        return add

    def __exit__(self, *error: object) -> None:
        self._bar.stop()


def _found(results: dict[str, Any]) -> list[str]:
    """What was found in the data set's folder, in words."""
    from realad_verl.data.account import account_lines
    from realad_verl.data.depth import Depth
    from realad_verl.evaluate.ground_truth import ground_truth_lines

    lines = [f"{results['pooled']['image']['n_images']} of {results['n_in_split']} images of split {results['split']}"]
    lines += account_lines(results["account"]) + results["remarks"] + ground_truth_lines(results["masks"])
    depth = results["settings"].get("depth")
    return lines + ([f"images of more than 8 bits: {Depth(**depth)}"] if depth else [])


def _print_results(results: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from realad_verl.report.tables import CATEGORY, percent

    console = Console()
    named = [*results["categories"].items(), ("macro mean", results["macro_mean"]), ("pooled", results["pooled"])]
    for title, groups in (("Image and answers, %", ("image", "answers")), ("Pixel, %", ("pixel",))):
        columns = [column for column in CATEGORY if column[0] in groups]
        table = Table("category", *(label for _, _, label in columns), title=title, title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for name, figures in named:
            if name == "macro mean":
                table.add_section()
            table.add_row(escape(name), *(percent(figures.get(group, {}).get(key)) for group, key, _ in columns))
        console.print(table)
    console.print(f"thresholds: {results['threshold_source']}", markup=False, highlight=False)
    for line in _found(results):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for entry in results["bad_images"]:
        console.print(f"not readable: {entry['id']} ({entry['error']})", markup=False, highlight=False)
    if results["anomalous_without_mask"]:
        names = ", ".join(results["anomalous_without_mask"][:5])
        console.print(f"anomalous without a mask, not in the pixel figures: {names}", markup=False, highlight=False)
    console.print(f"Look at it: realad report {out} --out report.html", markup=False, highlight=False)
