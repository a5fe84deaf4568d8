"""The processes that make up a run on this machine, and which of them have died.

Some deaths reach verl as an exception within seconds. Others leave it waiting for an answer that can't come: a vLLM
engine or a sample store that is gone while weights or samples are on their way to it. The watchdog looks itself.
"""

import psutil

# Titles of processes that live as long as the run. Ray's other workers come and go.
LASTING = (
    "ray::TaskRunner",
    "ray::WorkerDict",
    "ray::vLLMHttpServer",
    "ray::AgentLoopWorker",
    "ray::RewardLoopWorker",
    "ray::SimpleStorageUnit",
    "ray::TransferQueueController",
    "VLLM::",
)
OURS = ("ray::", "VLLM::")
SERVERS = ("/raylet/raylet", "/gcs/gcs_server")


class Parts:
    """The lasting processes below this one: of a local Ray, all; of a cluster that was there before, none."""

    def __init__(self) -> None:
        self._seen: dict[int, str] = {}
        self._gone_since: dict[int, float] = {}

    def lost(self, now: float, grace_s: float) -> list[str]:
        """Parts that have been gone for ``grace_s`` seconds at time ``now``; called again and again."""
        alive = _lasting_children()
        self._seen |= alive
        for pid in self._seen.keys() - alive.keys():
            self._gone_since.setdefault(pid, now)
        if all(now - since < grace_s for since in self._gone_since.values()):
            return []
        # When a raylet dies, its workers follow or leave this tree: name the first that was missed.
        first = min(self._gone_since.values())
        return [f"{self._seen[pid]} (pid {pid})" for pid, since in self._gone_since.items() if since == first]


def ray_children() -> list[psutil.Process]:
    """Every process of Ray and vLLM below this one."""
    return [process for process, title, _ in _titled_children() if title.startswith(OURS) or title.endswith(SERVERS)]


def _lasting_children() -> dict[int, str]:
    titled = _titled_children()
    titles = {process.pid: title for process, title, _ in titled}
    parts = {}
    for process, title, parent in titled:
        lasting = title.startswith(LASTING) or title.endswith(SERVERS)
        if lasting and not _is_fork(title, titles.get(parent, "")):
            parts[process.pid] = title.rpartition("/")[2]
    return parts


def _is_fork(title: str, parent: str) -> bool:
    """A child that carries its parent's title until it becomes something else: a subprocess about to start (W&B's
    service, git), a vLLM worker. Ray's own workers are the raylet's children, never another worker's."""
    return title == parent or (title.startswith("ray::") and parent.startswith("ray::"))


def _titled_children() -> list[tuple[psutil.Process, str, int]]:
    """Each process below this one, its title and its parent's pid."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            found.append((process, (process.cmdline() or [""])[0], process.ppid()))  # a zombie has no title
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
