"""What ended a run, in one line. Ray's errors carry a traceback of each process between the fault and the launcher."""

import re

# Ray's advice after the detail of a death, as long as a screen.
ADVICE = " Some common causes include"
LIMIT = 300
NO_MATERIAL = (
    "no response arrived that could be trained on: every one failed, or was too long (prompts over "
    "data.max_prompt_length, rows without an image; `realad check` opens the data), or the engine that makes them died."
)


def is_death(error: BaseException) -> bool:
    """Whether ``error`` is about a process that is gone, rather than one that failed and took the run down in order."""
    return re.search(r"\bdied\b|\bdead\b|\bunavailable\b", str(error)) is not None


def is_without_material(error: BaseException) -> bool:
    """Whether verl's replay buffer had nothing to give: it says no word of why."""
    return "no materializable trajectories" in str(error)


def in_one_line(error: BaseException) -> str:
    """The last line of ``error``'s text, led by the Ray actor that died, where Ray names one."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1].split(ADVICE)[0][:LIMIT] if lines else ""
    if is_without_material(error):
        last = f"{NO_MATERIAL} verl says: {last}"
    actor = re.search(r"class_name: (\S+)", text)
    if actor is None or "died" not in text:
        return last
    pid = re.search(r"\bpid: (\d+)", text)
    return f"{actor[1].rpartition('.')[2]}{f' (pid {pid[1]})' if pid else ''} died. {last}"
