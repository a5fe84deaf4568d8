"""manifest.json: what a prepared directory holds, by content, so that another one can be kept apart from it."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from realad_verl.errors import UserError

NAME = "manifest.json"
FORMAT = "realad-manifest/1"


def read_hashes(manifests: Iterable[Path]) -> dict[str, str]:
    """Content hash -> "manifest: image id" of every image in the manifests (files, or prepared directories)."""
    found: dict[str, str] = {}
    for given in manifests:
        path = given / NAME if given.is_dir() else given
        if not path.is_file():
            raise UserError(f"against = {given}: no such manifest. Give a prepared directory or its {NAME}.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise KeyError("format")
            found |= {image["sha256"]: f"{path}: {image['id']}" for image in content["images"]}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"against = {path} is not a manifest of `realad prepare` ({FORMAT}).") from error
    return found


def duplicates(images: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Images of the same content: [{"sha256", "ids", "labels"}]. Two labels: the dataset contradicts itself."""
    same: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for image in images:
        same[image["sha256"]].append(image)
    return [
        {"sha256": digest, "ids": [i["id"] for i in group], "labels": sorted({i["label"] for i in group})}
        for digest, group in sorted(same.items())
        if len(group) > 1
    ]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
