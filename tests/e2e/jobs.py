"""Training jobs for the end-to-end tests, which can't outlive their limit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

REALAD = [sys.executable, "-m", "realad_verl.cli"]
RECIPE = "local/cgro_tiny_cpu"
# A cluster on this machine alone; a local Ray gets these from the launcher.
ON_CLUSTER = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "GLOO_SOCKET_IFNAME": "lo"}


@dataclass(frozen=True)
class Run:
    """A finished training job."""

    folder: Path
    returncode: int
    stderr: str
    seconds: float
    left_over: list[str]

    def steps(self) -> dict[int, dict]:
        """Metrics by step, of every part of the run."""
        records = {}
        for path in sorted(self.folder.glob("metrics*.jsonl")):
            for line in path.read_text().splitlines():
                record = json.loads(line)
                records[record["step"]] = record["data"]
        return records


def environment() -> dict[str, str]:
    """This process's environment without what an outer job may have set."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "VERL_", "VLLM_", "WANDB_"))} | {
        "WANDB_MODE": "disabled"
    }


def descendants(marker: str) -> list[psutil.Process]:
    """Processes whose environment carries ``marker``: a job's, wherever Ray put them."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("REALAD_TEST_JOB") == marker and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def start(
    folder: Path,
    data: Path,
    *overrides: str,
    resume: bool = False,
    address: str | None = None,
    env: dict[str, str] | None = None,
    recipe: str | None = None,
) -> subprocess.Popen:
    """Start ``realad train`` on the local recipe or another, with ``env`` on top; stderr goes to ``<folder>.log``."""
    arguments = [
        f"data.train_files={data}/train.parquet",
        f"data.val_files={data}/val.parquet",
        f"trainer.default_local_dir={folder}",
        *overrides,
    ]
    command = [*REALAD, "train", recipe or RECIPE, *arguments, *(["--resume"] if resume else [])]
    cluster = ON_CLUSTER | {"RAY_ADDRESS": address} if address else {}
    env = environment() | {"REALAD_TEST_JOB": str(folder)} | cluster | (env or {})
    log = open(f"{folder}.log", "a")  # noqa: SIM115  (lives as long as the job)
    return subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)


def finish(process: subprocess.Popen, folder: Path, limit: float, grace: float = 20.0) -> Run:
    """Wait at most ``limit`` seconds; what of the job is alive ``grace`` seconds after its end is named and killed."""
    began = time.monotonic()
    try:
        process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    seconds = time.monotonic() - began
    deadline = time.monotonic() + grace
    while (alive := descendants(str(folder))) and time.monotonic() < deadline:
        time.sleep(0.5)
    names = [" ".join(p.cmdline())[:80] for p in alive if p.is_running()]
    for survivor in alive:
        survivor.kill()
    return Run(folder, process.returncode, Path(f"{folder}.log").read_text(), seconds, names)


def train(folder: Path, data: Path, *overrides: str, limit: float = 900, **options) -> Run:
    """A whole job, with :func:`start`'s options."""
    return finish(start(folder, data, *overrides, **options), folder, limit)


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
gpus = int(sys.argv[1])
node = dict(num_cpus=6 * gpus, num_gpus=gpus, object_store_memory=300_000_000)
cluster = Cluster(initialize_head=True, head_node_args=node)
second = cluster.add_node(**node)
cluster.wait_for_nodes()
print("ADDRESS", cluster.address, flush=True)
for line in sys.stdin:
    if line.strip() == "add":
        cluster.add_node(**node)
        cluster.wait_for_nodes(60)  # until Ray knows, too, that the lost one is lost
    else:
        # kill -9, and a wait for what was killed: Ray's workers take a raylet that is a zombie to be alive.
        cluster.remove_node(second, allow_graceful=False)
    print("DONE", flush=True)
cluster.shutdown()
"""


class Cluster:
    """A Ray cluster of two raylets on this machine, a node each, and ``gpus`` GPUs (in name) on each."""

    def __init__(self, gpus: int = 1):
        cpu = {"VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        cpu |= {"RAY_worker_niceness": "0", "RAY_agent_register_timeout_ms": "120000", "GLOO_SOCKET_IFNAME": "lo"}
        cpu |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "HF_HUB_OFFLINE": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", CLUSTER, str(gpus)], env=os.environ | cpu, **pipes)
        self.address = self._answer("ADDRESS").split()[1]

    def _answer(self, word: str) -> str:
        return next(line for line in iter(self.process.stdout.readline, "") if line.startswith(word))

    def lose_node(self) -> None:
        """kill -9 of the second node's raylet."""
        self._do("lose")

    def add_node(self) -> None:
        """Another raylet, as when a node comes back; returns when Ray knows which nodes it has."""
        self._do("add")

    def _do(self, what: str) -> None:
        print(what, file=self.process.stdin, flush=True)
        self._answer("DONE")


@contextmanager
def cluster(gpus: int = 1) -> Iterator[Cluster]:
    """A :class:`Cluster`, gone afterwards."""
    made = Cluster(gpus)
    try:
        yield made
    finally:
        made.process.stdin.close()
        made.process.wait(timeout=60)


def prepare(root: Path) -> Path:
    """Procedural images in ``root``, prepared like anybody's own folder: train.parquet and val.parquet."""
    data = root / "prepared"
    images = ["tiny", "images", "--out", str(root / "folder"), "--count", "48", "--size", "168", "--seed", "3"]
    rows = ["prepare", "folder", "--root", str(root / "folder"), "--out", str(data), "--size", "168"]
    for arguments in (images, rows):
        subprocess.run([*REALAD, *arguments], check=True, timeout=600, capture_output=True, env=environment())
    return data
