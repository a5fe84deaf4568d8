"""The processor of any family with a backbone entry, not only of those that verl knows by the name of their class.

verl 0.9.1 answers the others with a warning ("Unsupported processor type") and no processor, drops the images of every
prompt, and trains on the text: such a run looks healthy.
"""

import functools
import warnings
from typing import Any

TARGET = "verl.workers.config.model"
SEEN_IN = ("verl 0.9.1",)


def repair(module: Any) -> None:
    """Patch ``module.hf_processor``. A family that verl knows keeps verl's, with its positions in several planes."""
    original = module.hf_processor
    assert callable(original), f"{TARGET} loads processors by another name"

    @functools.wraps(original)
    def hf_processor(path: str, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Failed to create processor: Unsupported")
            return original(path, **kwargs) or _of_our_families(path, **kwargs)

    module.hf_processor = hf_processor


def _of_our_families(path: str, **kwargs: Any) -> Any:
    """transformers' processor where ``path`` holds one of ours; None for text models and folders without its files."""
    from transformers import AutoConfig, AutoProcessor, ProcessorMixin

    from realad_verl.backbones import BACKBONES

    try:
        config = AutoConfig.from_pretrained(path, **kwargs)
        if config.model_type not in BACKBONES:
            return None
        processor = AutoProcessor.from_pretrained(path, **kwargs)
    except (OSError, ValueError) as error:
        warnings.warn(f"no processor in {path}: {error}", stacklevel=2)
        return None
    if not isinstance(processor, ProcessorMixin):
        return None
    setattr(processor, "config", config)  # noqa: B010  (as verl does)
    return processor
