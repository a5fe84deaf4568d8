"""The tiny backbone: a Qwen2.5-VL of 1.2 M parameters that ships with the package, and how it was made.

:mod:`.arch` and :mod:`.tokenizer` shape it, :mod:`.lessons` are what :mod:`.train` teaches it on procedural images,
:mod:`.report` measures it, :mod:`.rollout` samples from it quickly, :mod:`.build` does all of that; ``model/`` is what
ships.
"""

from pathlib import Path


def tiny_model_dir() -> Path:
    """Folder of the shipped tiny Qwen2.5-VL (see its README.md); ``from_pretrained`` and vLLM load it."""
    return Path(__file__).parent / "model"
