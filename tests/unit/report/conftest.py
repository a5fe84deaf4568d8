from pathlib import Path

import pytest
from fabricated_runs import fabricate_evaluation, fabricate_training

HOSTILE = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'> & <b>bold</b>"


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Two evaluations of the same images, one with a hostile response, and a training run."""
    base = tmp_path_factory.mktemp("runs")
    return {
        "cgro": fabricate_evaluation(base / "cgro", 12, seed=1, hostile=HOSTILE),
        "r1": fabricate_evaluation(base / "r1", 12, seed=2, skill=0.5),
        "train": fabricate_training(base / "train", steps=60, images=4),
    }
