"""The parts that make up a run, and which of them have died.

Some deaths reach verl as an exception within seconds. Others leave it waiting for an answer that can't come: a vLLM
engine, a sample store or a node that is gone while weights or samples are on their way to it. The watchdog looks
itself.
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


class _Parts:
    def __init__(self) -> None:
        self._seen: dict[int | str, str] = {}
        self._gone_since: dict[int | str, float] = {}

    def _alive(self) -> dict[int | str, str]:
        """The name of each part that is alive, by what it is known by."""
        raise NotImplementedError

    def lost(self, now: float, grace_s: float) -> list[str]:
        """Parts that have been gone for ``grace_s`` seconds at time ``now``; called again and again."""
        alive = self._alive()
        self._seen |= alive
        for part in self._seen.keys() - alive.keys():
            self._gone_since.setdefault(part, now)
        if all(now - since < grace_s for since in self._gone_since.values()):
            return []
        # When a raylet dies, its workers follow or leave this tree: name the first that was missed.
        first = min(self._gone_since.values())
        return [self._seen[part] for part, since in self._gone_since.items() if since == first]


class Processes(_Parts):
    """The lasting processes below this one: of a local Ray, all; of a cluster that was there before, none."""

    def _alive(self) -> dict[int | str, str]:
        return {pid: f"{name} (pid {pid})" for pid, name in _lasting_children().items()}


class Actors(_Parts):
    """The lasting actors of this process's job on a cluster that was there before, wherever they run.

    Not of a local Ray: its processes are looked at, and asking a control store that died takes a minute.
    """

    def __init__(self) -> None:
        super().__init__()
        self._local = False

    def _alive(self) -> dict[int | str, str]:
        import ray  # not before the environment is set
        from ray._private.state import actors

        self._local = self._local or any(title.endswith(SERVERS) for _, title, _ in _titled_children())
        if self._local or not ray.is_initialized():
            return {}
        try:
            job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
            alive = actors(job_id=job, actor_state_name="ALIVE")
        except Exception:  # the control store does not answer: who lives is not known
            return dict(self._seen)
        titled = {actor: (f"ray::{a['ActorClassName']}", a["Address"]["IPAddress"]) for actor, a in alive.items()}
        return {actor: f"{title} on {node}" for actor, (title, node) in titled.items() if title.startswith(LASTING)}


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
