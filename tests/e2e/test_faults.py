"""Parts of a job that die, a full disk, a node that is lost: an end within a stated time, with the cause, no process
left, and a run that goes on.

docs/reliability.md lists the promises. soak.py kills parts one after the other and says what is checked each time.
"""

import signal
import subprocess
import time

import pytest
from jobs import cluster, descendants, finish, start, train
from soak import SETTINGS, START_LIMIT, soak, wait_for

from realad_verl.verl_ext.run_folder import heartbeat
from realad_verl.verl_ext.run_folder.checkpoints import TRACKER, last_complete

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3600)]

# Seconds from the fault to the end of the job: the watchdog's limit and the time that dumping the stacks takes.
LIMIT = 240.0


def start_and_wait(folder, data, *overrides, steps: int = 2, **how):
    """A job that has finished ``steps`` steps, each with a checkpoint."""
    process = start(folder, data, *SETTINGS, *overrides, **how)
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        metrics = folder / "metrics.jsonl"
        if metrics.exists() and metrics.read_text().count("\n") >= steps:
            return process
        assert process.poll() is None, (folder.parent / f"{folder.name}.log").read_text()[-3000:]
        time.sleep(0.5)
    process.kill()
    raise AssertionError(f"the job never reached its step {steps}")


def check_goes_on(folder, data, *overrides, **how) -> None:
    """One more step from the last checkpoint."""
    step = last_complete(folder)
    run = train(folder, data, *SETTINGS, *overrides, f"trainer.total_training_steps={step + 1}", resume=True, **how)
    assert run.returncode == 0, run.stderr[-3000:]
    assert step + 1 in run.steps()


def test_sigterm_saves_and_ends_well(tmp_path, prepared):
    folder = tmp_path / "run"
    process = start_and_wait(folder, prepared)
    process.send_signal(signal.SIGTERM)
    run = finish(process, folder, LIMIT)
    assert run.returncode == 0 and "--resume" in run.stderr, run.stderr[-3000:]
    assert not run.left_over
    assert last_complete(folder) == max(run.steps())
    check_goes_on(folder, prepared)


def test_a_few_kills(tmp_path, prepared):
    """The soak, short; seed 1 begins with other parts than the long one's seed 0."""
    found = soak(tmp_path, kills=3, seed=1, data=prepared)
    assert found["kills"] == 3 and not found["broken"] and not found["lost_steps"], found


def test_an_engine_killed_while_it_samples(tmp_path, prepared):
    """verl speaks of an empty replay buffer then: the error names the part that is gone."""
    folder = tmp_path / "run"
    process = start_and_wait(folder, prepared)
    (engine,) = (p for p in descendants(str(folder)) if p.cmdline()[0].startswith("VLLM::EngineCore"))
    before = last_complete(folder)
    assert wait_for(lambda: heartbeat.read(folder).phase == "sampling responses", LIMIT, interval=0.01) is not None
    engine.kill()
    run = finish(process, folder, LIMIT)
    print(f"engine killed while sampling: end after {run.seconds:.1f} s")
    errors = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert run.returncode == 1 and len(errors) == 1, run.stderr[-3000:]
    assert "the run died in 'sampling responses'" in errors[0], errors
    assert "VLLM::EngineCore" in errors[0] or "vLLM engine" in errors[0] or "EngineDead" in errors[0], errors
    assert "resume: realad train" in run.stderr and not run.left_over
    assert last_complete(folder) >= before
    check_goes_on(folder, prepared)


@pytest.fixture()
def small_disk(tmp_path):
    """A file system of its own with room for two checkpoints (16 MB each) and a half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=38m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_while_saving(tmp_path, prepared, small_disk):
    """The third checkpoint does not fit: one error, the second is resumed once there is room."""
    folder = tmp_path / "run"  # so that the test's log is on another disk
    (small_disk / "run").mkdir()
    folder.symlink_to(small_disk / "run")
    process = start_and_wait(folder, prepared)
    run = finish(process, folder, LIMIT)
    print(f"end {run.seconds:.1f} s after the last step that was saved")
    assert run.returncode == 1, run.stderr[-3000:]
    errors = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "the run died in 'saving a checkpoint' of step 3" in errors[0], errors
    assert "MiB free on that disk" in errors[0] and "resume: realad train" in run.stderr
    assert not run.left_over
    assert last_complete(folder) == 2 and (folder / "global_step_3").exists()
    # What verl's own write of the tracker would leave, had the disk been full a moment later.
    (folder / TRACKER).write_text("")
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    check_goes_on(folder, prepared)


def test_a_lost_node(tmp_path, prepared):
    """kill -9 of the raylet of the second of two nodes; the run goes on once the node is back."""
    folder, two = tmp_path / "run", "trainer.nnodes=2"
    with cluster() as ray:
        process = start_and_wait(folder, prepared, two, address=ray.address)
        began = time.monotonic()
        ray.lose_node()
        run = finish(process, folder, LIMIT, grace=120)
        clean = time.monotonic() - began
        errors = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
        assert run.returncode == 1 and len(errors) == 1 and "the run died in" in errors[0], run.stderr[-3000:]
        assert "resume: realad train" in run.stderr
        assert not run.left_over
        ray.add_node()
        known = time.monotonic() - began
        print(f"node lost: end {run.seconds:.1f} s, nothing left {clean:.1f} s, known to Ray {known:.1f} s")
        check_goes_on(folder, prepared, two, address=ray.address)
