"""The shipped launch files run themselves, on two hosts made of network namespaces; Slurm's commands are stand-ins."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import jobs
import pytest
from hosts import Hosts, two_hosts

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2400)]

LAUNCH = Path(__file__).resolve().parents[2] / "recipes" / "launch"
BARE, SLURM = LAUNCH / "ray_bare_nodes.sh", LAUNCH / "slurm.sbatch"
NODE = "--num-cpus 6 --num-gpus 1 --object-store-memory 300000000"
RUN = ("trainer.nnodes=2", "data.train_batch_size=4", "actor_rollout_ref.rollout.n=4", "trainer.total_training_steps=2")


@pytest.fixture()
def hosts():
    with two_hosts() as made:
        yield made


@pytest.fixture()
def shared(tmp_path, request):
    """The folder that all nodes see; with data where the test trains."""
    folder = tmp_path / "shared"
    folder.mkdir()
    if "prepared" in request.fixturenames:
        (folder / "data").symlink_to(request.getfixturevalue("prepared"))
    return folder


def environment(shared: Path, **extra: str) -> dict[str, str]:
    """A user's shell: the environment's bin first on PATH, nothing about the network."""
    left = {k: v for k, v in jobs.environment().items() if not k.startswith(("GLOO_", "NCCL_", "SLURM_"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    wanted = {"PATH": path, "SHARED": str(shared), "RAY_ARGS": NODE, "REALAD_TEST_JOB": str(shared)}
    # A laptop's Ray is slow to start and must not be niced behind everything else; see CPU_ENVIRONMENT.
    ray = {"RAY_agent_register_timeout_ms": "120000", "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    return left | wanted | ray | extra


def wait_for(process: subprocess.Popen, limit: float) -> int | None:
    try:
        return process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        return None


def nothing_left(shared: Path, limit: float = 90) -> list[str]:
    deadline = time.monotonic() + limit
    while (alive := jobs.descendants(str(shared))) and time.monotonic() < deadline:
        time.sleep(0.5)
    return [" ".join(p.cmdline())[:80] for p in alive if p.is_running()]


@pytest.mark.parametrize("head", ["127.0.0.1", "localhost"])
def test_a_loopback_head_is_refused(tmp_path, head):
    for role in (("head", "cluster/4x8"), ("worker",)):
        env = environment(tmp_path, HEAD=head)
        done = subprocess.run([BARE, *role], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and "loopback" in done.stderr, done.stderr


def test_a_worker_without_a_head_gives_up(tmp_path, hosts: Hosts):
    log = tmp_path / "log"
    worker = hosts.start(
        1, str(BARE), "worker", log=log, env=environment(tmp_path, HEAD=hosts.addresses[0], WAIT_S="3")
    )
    assert wait_for(worker, 60) == 1
    assert f"error: a Ray head at {hosts.addresses[0]}:6379: not within 3 s: nothing listens" in log.read_text()


def test_a_ray_that_does_not_start_is_reported_at_once(tmp_path, hosts: Hosts, shared):
    env = environment(shared, HEAD=hosts.addresses[0], NODES="2", WAIT_S="500", RAY_ARGS="--no-such-option")
    head = hosts.start(0, str(BARE), "head", "cluster/4x8", log=tmp_path / "log", env=env)
    assert wait_for(head, 120) == 1
    assert "error: ray start ended with exit code 2" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_a_head_without_its_workers_gives_up_and_leaves_nothing(tmp_path, hosts: Hosts, shared):
    env = environment(shared, HEAD=hosts.addresses[0], NODES="2", WAIT_S="45")
    head = hosts.start(0, str(BARE), "head", "cluster/4x8", log=tmp_path / "log", env=env)
    assert wait_for(head, 300) == 1
    text = (tmp_path / "log").read_text()
    assert f"error: 2 Ray nodes: not within 45 s: 1 of 2 nodes are there: {hosts.addresses[0]}" in text, text[-2000:]
    assert not nothing_left(shared)


def check_run(folder: Path, log: Path, code: int | None) -> None:
    assert code == 0, log.read_text()[-3000:]
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2]


REFUSED = "import ray; ray.init(address='{}', log_to_driver=False)"


@pytest.mark.slow
def test_bare_nodes(tmp_path, hosts: Hosts, shared, prepared):
    head_address, run, log = hosts.addresses[0], shared / "run", tmp_path / "head.log"
    env = environment(shared, HEAD=head_address, NODES="2")
    arguments = (str(BARE), "head", jobs.RECIPE, *RUN, f"trainer.default_local_dir={run}")
    head = hosts.start(0, *arguments, log=log, env=env)
    worker = hosts.start(1, str(BARE), "worker", log=tmp_path / "worker.log", env=env)
    deadline = time.monotonic() + 600
    while "starting workers" not in log.read_text() and head.poll() is None and time.monotonic() < deadline:
        time.sleep(1)
    # Another user of this network, without the token and with another.
    for other in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}):
        command = hosts.wrap(1, sys.executable, "-c", REFUSED.format(f"{head_address}:6379"))
        done = subprocess.run(command, env=environment(tmp_path) | other, capture_output=True, text=True, timeout=300)
        assert done.returncode != 0 and "auth" in done.stderr.lower(), done.stderr[-1500:]
    check_run(run, log, wait_for(head, 1500))
    # The head is gone, so the worker ends by itself: its GPUs are free.
    assert wait_for(worker, 180) is not None, (tmp_path / "worker.log").read_text()[-2000:]
    assert not nothing_left(shared)
    token = shared / "ray_auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and len(token.read_text()) == 64


SRUN = """#!{python}
# Stands in for srun: runs the command on the host that -w names, or on every host but --exclude's.
import json, subprocess, sys
hosts, arguments, chosen = json.load(open({table!r})), sys.argv[1:], None
assert any(a.startswith("--cpus-per-task=") for a in arguments), "srun does not inherit --cpus-per-task"
while arguments and arguments[0].startswith("-"):
    flag = arguments.pop(0)
    if flag == "-w":
        chosen = [arguments.pop(0)]
    elif flag == "--exclude":
        other = arguments.pop(0)
        chosen = [name for name in hosts if name != other]
running = [subprocess.Popen([*hosts[name], *arguments]) for name in chosen]
import signal
signal.signal(signal.SIGTERM, lambda *_: [p.kill() for p in running])
sys.exit(max(abs(p.wait()) for p in running))
"""


@pytest.fixture()
def slurm(tmp_path, hosts: Hosts):
    """An allocation of two nodes. As on Debian, each node's own name is 127.0.1.1 to itself."""
    names = ["node-a", "node-b"]
    folders = []
    for own, namespace in enumerate(hosts.names):
        lines = [f"{'127.0.1.1' if i == own else hosts.addresses[i]} {name}" for i, name in enumerate(names)]
        folder = Path("/etc/netns") / namespace  # ip netns exec puts it over /etc/hosts
        folder.mkdir(parents=True)
        (folder / "hosts").write_text("127.0.0.1 localhost\n" + "\n".join(lines) + "\n")
        folders.append(folder)
    bin_dir, table = tmp_path / "bin", tmp_path / "hosts.json"
    bin_dir.mkdir()
    # The batch script runs on the first node: what srun starts there is beside it, with the same /tmp/ray.
    table.write_text(json.dumps({names[0]: [], names[1]: hosts.wrap(1)}))
    scripts = {"srun": SRUN.format(python=sys.executable, table=str(table))}
    scripts["scontrol"] = "#!/bin/sh\nprintf '%s\\n' " + " ".join(names) + "\n"
    for name, text in scripts.items():
        (bin_dir / name).write_text(text)
        (bin_dir / name).chmod(0o755)
    allocation = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "6"}
    yield allocation | {"PATH": f"{bin_dir}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for folder in folders:
        (folder / "hosts").unlink()
        folder.rmdir()


@pytest.mark.slow
def test_slurm(tmp_path, hosts: Hosts, shared, prepared, slurm):
    run, log = shared / "run", tmp_path / "log"
    arguments = (str(SLURM), jobs.RECIPE, *RUN, f"trainer.default_local_dir={run}")
    batch = hosts.start(0, "bash", *arguments, log=log, env=environment(shared, **slurm))
    check_run(run, log, wait_for(batch, 1800))
    assert not nothing_left(shared)
    assert not list(shared.glob("ray_auth_token*"))


def test_slurm_reports_a_ray_that_does_not_start(tmp_path, hosts: Hosts, shared, slurm):
    env = environment(shared, **slurm, WAIT_S="500") | {"RAY_ARGS": "--no-such-option"}
    batch = hosts.start(0, "bash", str(SLURM), "cluster/4x8", log=tmp_path / "log", env=env)
    assert wait_for(batch, 120) == 1
    text = (tmp_path / "log").read_text()
    assert "error: a ray start ended with exit code 2" in text, text[-2000:]
