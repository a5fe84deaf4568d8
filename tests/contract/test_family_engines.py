"""Every family in the engine without vLLM: packed as padded, two ranks as one, LoRA where the recipe puts it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_engine import HERE, _free_port

from realad_verl.backbones import BACKBONES, TRAINABLE
from realad_verl.verl_ext.train import wire

sys.path.append(str(HERE.parent / "e2e"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

FAMILIES = tuple(f for f in TRAINABLE if not BACKBONES[f].packages and not BACKBONES[f].not_run)
MODES = (("padded", 1), ("padded", 2), ("packed", 1), ("lora", 2))


def _ranks(folder: Path, mode: str, world: int) -> list[dict]:
    out = folder / f"{mode}_{world}"
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    shared |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo", "VERL_PLATFORM": "cpu"}
    command = [sys.executable, str(HERE / "family_engines.py"), str(out), str(folder), mode, *FAMILIES]
    ranks = [
        subprocess.Popen(command, env=os.environ | shared | {"RANK": str(r), "LOCAL_RANK": "0"}, cwd=HERE)
        for r in range(world)
    ]
    try:
        codes = [process.wait(timeout=1200) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert codes == [0] * world
    return [torch.load(f"{out}.{rank}", weights_only=False) for rank in range(world)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    import tiny_families

    folder = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        tiny_families.write(family, folder / family, steps=0)
    return {(mode, world): _ranks(folder, mode, world) for mode, world in MODES}


def _together(ranks: list[dict], family: str, key: str) -> list[torch.Tensor]:
    parts = sorted((rank[family] for rank in ranks), key=lambda part: part["rank"])
    return [value for part in parts for value in part[key]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES[1:], ids=str)
def test_as_padded_on_one_rank(results, mode, family):
    for key, tolerance in (("log_probs", 1e-4), (wire.DETAIL[0], 1e-5), (wire.DETAIL[1], 1e-4)):
        pairs = zip(_together(results[mode], family, key), _together(results["padded", 1], family, key), strict=True)
        for got, want in pairs:
            assert torch.allclose(got, want, atol=tolerance), (key, (got - want).abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_trains_and_is_sent(results, family):
    for mode in MODES:
        for rank in results[mode]:
            seen = rank[family]
            # LLaVA takes the features of a layer before the last one.
            assert all("vision_tower" in name for name in seen["still"]) or mode[0] == "lora", (mode, seen["still"])
            assert seen["sent"].keys() == results["padded", 1][0][family]["sent"].keys()
    one, two = (ranks[family]["sent"] for ranks in results["padded", 2])
    assert one == two


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_is_on_the_language_model_alone(results, family):
    trained = results["lora", 2][0][family]["trained"]
    assert trained and all(".lora_" in name for name in trained)
    assert not [name for name in trained if any(part in name for part in BACKBONES[family].beside)]
    assert len({name.split(".layers.")[1].split(".")[0] for name in trained}) == 3
