"""What the end-to-end tests share: a small prepared data set, and jobs on it."""

from pathlib import Path

import jobs
import pytest


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """Procedural images, prepared like anybody's own folder: train.parquet and val.parquet."""
    return jobs.prepare(tmp_path_factory.mktemp("images"))


@pytest.fixture()
def train():
    """:func:`jobs.train`."""
    return jobs.train
