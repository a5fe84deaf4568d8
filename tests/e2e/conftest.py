"""What the end-to-end tests share: a small prepared data set, and jobs on it."""

import subprocess
from pathlib import Path

import jobs
import pytest


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """Procedural images, prepared like anybody's own folder: train.parquet and val.parquet."""
    root = tmp_path_factory.mktemp("images")
    data = root / "prepared"
    images = ["tiny", "images", "--out", str(root / "folder"), "--count", "48", "--size", "168", "--seed", "3"]
    prepare = ["prepare", "folder", "--root", str(root / "folder"), "--out", str(data), "--size", "168"]
    for arguments in (images, prepare):
        subprocess.run([*jobs.REALAD, *arguments], check=True, timeout=600, capture_output=True, env=jobs.environment())
    return data


@pytest.fixture()
def train():
    """:func:`jobs.train`."""
    return jobs.train
