"""What the model's processor makes of a prompt: does its chat template open the think block, how long is a row?"""

from functools import lru_cache
from typing import Any

from PIL import Image

from realad_verl.errors import UserError
from realad_verl.method.config import SpanConfig
from realad_verl.method.spans import opened_spans
from realad_verl.verl_ext.recipe.model_facts import local_model
from realad_verl.verl_ext.recipe.problem import Setup

MODEL = "actor_rollout_ref.model"


@lru_cache(maxsize=4)
def processor_of(path: str, custom_template: str | None = None, download: bool = False) -> Any | None:
    """The processor of the model ``path``; None where it has none that loads, or is not here (``download`` False)."""
    try:
        if local_model(path) is None and not download:
            return None
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(path, local_files_only=not download)
    except (OSError, ValueError, ImportError, UserError):
        return None
    if custom_template is not None:
        processor.chat_template = custom_template
    return processor


def prompt_of(s: Setup, messages: list[dict[str, Any]], download: bool = False) -> str | None:
    """The prompt that verl makes of ``messages`` (content: parts), as text; None where no processor is here."""
    processor = processor_of(s.model.path, s.get(f"{MODEL}.custom_chat_template"), download)
    if processor is None or getattr(processor, "tokenizer", None) is None:
        return None
    options: Any = s.get("data.apply_chat_template_kwargs", {})
    try:
        return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **options)
    except Exception:  # whatever a foreign template raises; verl's own error comes at its start
        return None


def template_opens(s: Setup, spans: SpanConfig, download: bool = False) -> bool | None:
    """Whether a prompt ends with the opening think tag; None where that cannot be seen here."""
    content = [{"type": "image"}, {"type": "text", "text": "Any defects?"}]
    text = prompt_of(s, [{"role": "user", "content": content}], download)
    if text is None:
        return None
    return opened_spans(SpanConfig(think_open=spans.think_open), text).opened_by_template is True


def prompt_tokens(s: Setup, messages: list[dict[str, Any]], image: Image.Image) -> int | None:
    """Tokens of one row's prompt with its image; None where no processor is here, or it takes no such prompt."""
    text = prompt_of(s, messages)
    if text is None:
        return None
    from realad_verl.backbones.inputs import prepare

    processor = processor_of(s.model.path, s.get(f"{MODEL}.custom_chat_template"))
    try:
        return len(prepare(processor, text, image).input_ids)
    except (ValueError, TypeError, RuntimeError, IndexError):
        return None
