"""Which families verl brings images to: it must load their processor, and hand vLLM one placeholder an image.

Without a processor verl drops the images, with a warning, and trains on the text. vLLM expands a placeholder that is
expanded already once more: the sampling policy would see another prompt than the trained one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from realad_verl.backbones import BACKBONES
from realad_verl.verl_ext.recipe.check_pairs import TRAINABLE_FAMILIES

CODE = """
import json, sys, warnings
from pathlib import Path
from types import SimpleNamespace
import tiny_models
from PIL import Image
from verl.utils import hf_processor
from verl.workers.rollout.utils import qwen2_5_vl_dedup_image_tokens
from realad_verl.backbones.inputs import chat_text, prepare
from realad_verl.data.prompts import hf_messages
from realad_verl.errors import UserError
from realad_verl.verl_ext.train.engine import EvidenceEngine
found = {}
for family in sys.argv[2:]:
    folder, tiny = Path(sys.argv[1]) / family, tiny_models.build(family)
    tiny.model.config.save_pretrained(folder)
    tiny.processor.save_pretrained(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        processor = hf_processor(str(folder))
    if processor is None:
        found[family] = " ".join(str(w.message) for w in caught)
        continue
    ids = prepare(processor, chat_text(processor, hf_messages()), Image.new("RGB", (112, 112))).input_ids.tolist()
    to_vllm = qwen2_5_vl_dedup_image_tokens(ids, processor)
    found[family] = [row.count(tiny.model.config.image_token_id) for row in (ids, to_vllm)]
try:
    refusal = EvidenceEngine(SimpleNamespace(processor=None, path="some/model"))
except UserError as error:
    refusal = str(error)
print(json.dumps([found, refusal]))
"""


def test_what_verl_cannot_bring_images_to_is_refused(tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1] / "unit"),
        "VERL_PLATFORM": "cpu",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", CODE, str(tmp_path), *sorted(BACKBONES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found, refusal = json.loads(done.stdout.splitlines()[-1])
    for family, result in found.items():
        if family in TRAINABLE_FAMILIES:
            assert result[0] > 1 and result[1] == 1, (family, result)
        elif family == "glm4v":
            assert result[0] == result[1] > 1, "verl no longer hands vLLM expanded placeholders: glm4v may train now"
        else:
            assert "Unsupported processor type" in result, (family, result)
    assert "some/model" in refusal and "without images" in refusal
