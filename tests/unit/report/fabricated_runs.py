"""Run folders with made-up content, in the format that `realad evaluate` and the trainer write."""

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from realad_verl.evaluate.records import file_stem, save_map, save_thumbnail
from realad_verl.evaluate.store import ResultStore, write_json
from realad_verl.evaluate.summary import SummaryConfig, summarise

CATEGORIES = {"bolt": ["scratch", "dent"], "tile": ["crack", "stain"], "board": ["missing pad"]}
LOOK = "I look at the whole surface and compare the texture in every region of the {category} before I decide."
YES = " Near the {where} there is a dark {defect} that breaks the regular pattern, so this is a defect."
NO = " Everywhere the pattern is even and nothing stands out, so it looks normal."


def fabricate_evaluation(
    folder: Path, n: int = 30, seed: int = 0, skill: float = 0.75, hostile: str = "", thumbs: int = 12, **settings
) -> Path:
    """An evaluation of ``n`` images in three categories by a model that is right with probability ``skill``.

    The images do not depend on ``seed``, the answers do. ``hostile`` is put into the first response. Only ``thumbs``
    different thumbnails are drawn, the others are copies.
    """
    shared = {"dataset": "made-up", "split": "test", "model": f"models/{folder.name}", "root": str(folder / "nowhere")}
    store = ResultStore(folder, shared | settings)
    rng = np.random.default_rng(seed)
    masks: dict[str, np.ndarray] = {}
    drawn: list[bytes] = []
    with store.writer() as writer:
        for i in range(n):
            row, masks[row["id"]], image = make_row(folder, i, rng, skill)
            if i < thumbs:
                save_thumbnail(folder / row["thumb"], image)
                drawn.append((folder / row["thumb"]).read_bytes())
            (folder / row["thumb"]).write_bytes(drawn[i % thumbs])
            if i == 0 and hostile:
                row["response"], row["reasoning"] = hostile, hostile
                row["tokens"] = [[hostile, 0.1, -1.0, 0.5, True]]
            writer.append(row)
        if n:
            writer.append({"id": "board/broken.png", "category": "board", "gt_label": 0, "error": "cannot identify"})
    results, images = summarise(store.rows(), folder, lambda r: masks[r["id"]], SummaryConfig())
    write_json(folder / "results.json", results)
    write_json(folder / "images.json", images)
    return folder


def make_row(folder: Path, i: int, rng: np.random.Generator, skill: float, label: int | None = None):
    """One row, its mask and its image."""
    look = np.random.default_rng(i)
    category = list(CATEGORIES)[i % len(CATEGORIES)]
    label = int(look.random() < 0.5) if label is None else label
    defect = CATEGORIES[category][int(look.integers(len(CATEGORIES[category])))] if label else "good"
    image, mask, centre = draw(look, category, label)
    right = rng.random() < skill
    said = label if right else 1 - label
    score = float(np.clip(said * 0.6 + 0.2 + rng.normal(0, 0.12), 0.01, 0.99))
    where = ("top" if centre[1] < 0.5 else "bottom") + (" left" if centre[0] < 0.5 else " right")
    text = LOOK.format(category=category) + (YES if said else NO).format(
        where=where, defect=defect.replace("good", "spot")
    )
    pieces = [piece if k == 0 else " " + piece for k, piece in enumerate(text.split(" "))]
    heat = np.array([word.strip(" .,") in ("dark", "defect", "breaks", defect, "normal", "even") for word in pieces])
    s_t, s_i = 0.02 * rng.random(len(pieces)) + 0.06 * heat, -1.5 * rng.random(len(pieces)) + 0.5 * heat
    weight = np.clip(0.25 * rng.random(len(pieces)) + 0.7 * heat, 0, 1)
    grid = np.indices((12, 16)).astype(np.float32)
    x, y = (centre if right and label else rng.random(2)) * np.array([16, 12])
    hill = np.exp(-((grid[1] - x) ** 2 + (grid[0] - y) ** 2) / 6)
    grid_map = (0.001 + 0.006 * hill * (1 if said else 0.4) + 0.002 * rng.random((12, 16))).astype(np.float32)
    name = f"{category}/{'good' if not label else defect.replace(' ', '_')}/{i:04d}.png"
    lost = i % 17 == 5
    row = {
        **{"id": name, "category": category, "defect_type": defect, "split": "test", "gt_label": label, "image": name},
        **{"mask": None, "image_size": [240, 320], "reasoning": text, "answer": None if lost else ("no", "yes")[said]},
        "response": f"<think>{text}</think>" + ("" if lost else f"<answer>{('no', 'yes')[said]}</answer>"),
        **{"pred_label": None if lost else said, "pred_score": None if lost else score, "well_formed": not lost},
        **{
            "problem": "no_answer" if lost else None,
            "jaccard": float(np.clip(rng.normal(0.25 + 0.3 * said, 0.15), 0, 1)),
        },
        **{"n_kept": int((weight > 0.5).sum()), "fallback": i % 11 == 3, "seconds": 0.1},
        "thumb": f"thumbs/{file_stem(name)}.webp",
        "map": f"maps/{file_stem(name)}.png",
        "map_scale": save_map(folder / f"maps/{file_stem(name)}.png", grid_map),
        "tokens": [
            [p, round(float(a), 4), round(float(b), 4), round(float(w), 3), bool(w > 0.5)]
            for p, a, b, w in zip(pieces, s_t, s_i, weight, strict=True)
        ],
    }
    return row, mask, image


def draw(look: np.random.Generator, category: str, label: int) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """A picture of 240 x 320, its mask, and where its defect is (x, y in shares)."""
    tint = {"bolt": (150, 140, 120), "tile": (120, 150, 160), "board": (70, 130, 80)}[category]
    noise = cv2.resize(look.random((30, 40)).astype(np.float32), (320, 240), interpolation=cv2.INTER_CUBIC)
    canvas = (np.array(tint) * (0.7 + 0.5 * noise[..., None])).clip(0, 255).astype(np.uint8)
    for k in range(0, 320, 32):
        cv2.line(canvas, (k, 0), (k, 240), tuple(int(v * 0.75) for v in tint), 2)
    centre = look.uniform(0.2, 0.8, 2)
    mask = np.zeros((240, 320), np.uint8)
    if label:
        at = (int(centre[0] * 320), int(centre[1] * 240))
        axes = (int(look.integers(10, 40)), int(look.integers(5, 14)))
        angle = float(look.integers(180))
        for target, colour in ((mask, 1), (canvas, (35, 25, 25))):
            cv2.ellipse(target, at, axes, angle, 0, 360, colour, -1)
    return Image.fromarray(canvas), mask.astype(bool), centre


def fabricate_training(folder: Path, steps: int = 60, images: int = 6) -> Path:
    """A training run: metrics.jsonl and samples of the first and the last step."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    write_json(
        folder / "settings.json", {"model": "tiny", "algorithm": "CGRO", "lr": 1e-6, "wandb": {"api_key": "s3cr3t"}}
    )
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(1, steps + 1):
            share = step / steps
            row: dict[str, float] = {"step": step, "time/rollout": 20 + rng.random(), "time/update": 8 + rng.random()}
            for label, up in (("normal", -1), ("anomalous", 1)):
                row[f"reward/format/{label}"] = min(1, 0.3 + 0.7 * share + 0.1 * rng.random())
                row[f"reward/accuracy/{label}"] = min(1, 0.5 + 0.3 * share + 0.1 * rng.random())
                row[f"reward/consistency/{label}"] = min(1, 0.2 + 0.5 * share + 0.1 * rng.random())
                row[f"evidence/jaccard/{label}"] = 0.35 + 0.2 * up * share + 0.05 * rng.random()
            file.write(json.dumps(row) + "\n")
        file.write('{"step": 61, "torn')
    for step, skill in ((1, 0.4), (steps // 2, 0.6), (steps, 0.95)):
        where = folder / "samples" / f"step_{step:06d}"
        for i in range(images):
            row, _, image = make_row(where, i, np.random.default_rng(step * 1000 + i), skill, label=i % 2)
            stem = f"{i:03d}"
            image.save(where / f"{stem}.png")
            row |= {"image": f"{stem}.png"}
            del row["thumb"], row["seconds"]
            write_json(where / f"{stem}.json", row)
    return folder
