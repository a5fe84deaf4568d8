"""How much can image labels teach this backbone at all? Cross-entropy on a linear head instead of rewards.

    python benchmarks/learning_supervised.py [--steps 150] [--lr 1e-4]

The same warm start and shifted domain as ``learning.py``, all weights trained, one pass over fresh images. A reference
for what reinforcement on the same number of images could hope for, not a method. Measured on validation images.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning import VALIDATION_SEED, held_out, load
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from realad_verl.data.procedural import ProceduralDefects
from realad_verl.tiny import tiny_model_dir
from realad_verl.tiny.arch import HIDDEN, IMAGE_SIZE
from realad_verl.tiny.build import hardware
from realad_verl.tiny.rollout import TinyRollout

BATCH, EVERY, HEAD_LR = 16, 50, 3e-3


def pixels(samples: list[Any]) -> Tensor:
    return torch.stack([torch.from_numpy(sample.image) for sample in samples])


class Classifier(nn.Module):
    """Logit of "anomalous" from the hidden state at the prompt's last token, where the response would begin."""

    def __init__(self, rollout: TinyRollout):
        super().__init__()
        self.rollout, self.backbone, self.head = rollout, rollout.model, nn.Linear(HIDDEN, 1)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 168, 168, 3] -> [B]"""
        inputs = self.rollout._batch(images, self.rollout.prompt.expand(len(images), -1))
        return self.head(self.backbone.model(**inputs, use_cache=False).last_hidden_state[:, -1])[:, 0]


@torch.no_grad()
def measure(classifier: Classifier, samples: list[Any]) -> tuple[float, float]:
    """(accuracy, image AUROC)"""
    logits = torch.cat([classifier(pixels(samples[i : i + 50])) for i in range(0, len(samples), 50)]).numpy()
    labels = np.array([sample.label for sample in samples])
    return float(((logits > 0) == labels).mean()), float(roc_auc_score(labels, logits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=tiny_model_dir())
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--images", type=int, default=400)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    classifier, held = Classifier(TinyRollout(*load(args.model))), held_out(VALIDATION_SEED, args.images)
    groups = [{"params": classifier.backbone.parameters()}, {"params": classifier.head.parameters(), "lr": HEAD_LR}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0)
    source = ProceduralDefects(IMAGE_SIZE, "shifted", 10_100)
    print(f"{hardware()}, 1 thread", flush=True)
    for step in range(args.steps + 1):
        if step % EVERY == 0:
            accuracy, auroc = measure(classifier, held)
            print(
                f"{step * BATCH} images, {time.process_time():.0f} CPU s: {accuracy:.3f}, AUROC {auroc:.3f}", flush=True
            )
        samples = [source[step * BATCH + i] for i in range(BATCH)]
        labels = torch.tensor([float(sample.label) for sample in samples])
        loss = binary_cross_entropy_with_logits(classifier(pixels(samples)), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
        optimizer.step()


if __name__ == "__main__":
    main()
