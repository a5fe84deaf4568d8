"""The tiny backbone that ships with the package: where it is and how it is built."""

from pathlib import Path


def tiny_model_dir() -> Path:
    """Folder of the shipped tiny Qwen2.5-VL (see its README.md); ``from_pretrained`` and vLLM load it."""
    return Path(__file__).parent / "tiny_model"
