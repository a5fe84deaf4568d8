"""The fixed question and the answer format (the question is the paper's, the format instruction is ours)."""

QUESTION = "Are there any defects or anomalies in the image?"
INSTRUCTION = (
    "Reason about what you see first, then answer. Use exactly this format: "
    "<think> your reasoning </think><answer> yes </answer> or <think> your reasoning </think><answer> no </answer>."
)


def prompt_text(question: str = QUESTION, instruction: str = INSTRUCTION) -> str:
    """The text of the user turn, without the image."""
    return f"{question} {instruction}"


def verl_messages(text: str | None = None) -> list[dict]:
    """Chat messages as verl's dataset wants them: ``<image>`` marks where the image goes."""
    return [{"role": "user", "content": f"<image>{prompt_text() if text is None else text}"}]


def hf_messages(text: str | None = None) -> list[dict]:
    """The same turn as Hugging Face chat templates want it."""
    content = [{"type": "image"}, {"type": "text", "text": prompt_text() if text is None else text}]
    return [{"role": "user", "content": content}]
