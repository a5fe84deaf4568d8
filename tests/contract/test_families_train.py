"""Every family that trains, as vLLM and the actor see it: the same prompt, log-probs, weights; evidence as eager's.

One process for all families of a test, since imports cost more than a family (family_rank.py).
"""

import json
import os
import subprocess
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from realad_verl.backbones import BACKBONES, TRAINABLE

HERE = Path(__file__).parent
QUICK = ("gemma3", "glm4v", "internvl", "mistral3")  # they differ most: see docs/backbones.md
LORA = ("gemma3+lora", "glm4v+lora", "internvl+lora", "mistral3+lora")
REST = tuple(family for family in TRAINABLE if family not in QUICK and not BACKBONES[family].not_run)
CORRELATION, PROBABILITY, EVIDENCE = 0.9999, 1e-3, 1e-5

pytestmark = pytest.mark.timeout(1800)


@lru_cache
def _results(out: Path, *names: str) -> dict[str, dict]:
    file = out / "results.json"
    command = [sys.executable, str(HERE / "family_rank.py"), str(file), str(out), *names]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent / "e2e")}
    done = subprocess.run(command, cwd=HERE, env=env, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(file.read_text())


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("families")

    def of(name: str) -> dict:
        batch = next(batch for batch in (QUICK, REST, LORA) if name in batch)
        if batch is REST and not find_spec("num2words"):
            batch = tuple(family for family in REST if not BACKBONES[family].packages)
        (out / batch[0]).mkdir(exist_ok=True)
        return _results(out / batch[0], *batch)[name]

    return of


def check(seen: dict, lora: bool = False) -> None:
    assert "error" not in seen, seen["error"]
    assert len(seen["steps"]) == 3
    unused = set() if lora else {name for name in seen["updates"][0]["still"] if "vision_tower" in name}
    for step in seen["steps"]:
        assert all(step["prompts_equal"]) and len(step["prompts_equal"]) == 4
        # Equal probabilities of one value would correlate with anything.
        assert step["spread"] > 3e-4 and step["tokens"] >= 20
        assert step["correlation"] >= CORRELATION
        assert step["difference"] <= PROBABILITY
        # LLaVA takes the features of a layer before the last: vLLM does not build what follows, nothing trains it.
        assert set(step["lost"]) <= unused and step["stale"] == []
    # Every other weight moved, or "stale" could not tell an old one.
    assert all(set(update["still"]) == unused or lora for update in seen["updates"])
    assert all(plain < expanded for plain, expanded in seen["lengths"])
    assert seen["evidence"]["difference"] <= EVIDENCE
    assert seen["evidence"]["jaccards"] >= 2


@pytest.mark.parametrize("family", QUICK)
def test_vllm_and_actor_agree(results, family):
    check(results(family))


@pytest.mark.slow
@pytest.mark.parametrize("family", REST)
def test_vllm_and_actor_agree_slow(results, family):
    for package in BACKBONES[family].packages:
        pytest.importorskip(package)
    check(results(family))


@pytest.mark.slow
@pytest.mark.parametrize("name", LORA)
def test_vllm_and_actor_agree_with_lora(results, name):
    check(results(name), lora=True)
