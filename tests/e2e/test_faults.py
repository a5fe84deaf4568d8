"""Parts of a job that die: an end within a stated time, with the cause, no process left, and a run that goes on.

docs/reliability.md lists the promises. Each test is one job that is hurt once its second step is done.
"""

import signal
import time

import pytest
from jobs import descendants, finish, start, train

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]

LONG = (
    "data.train_batch_size=4",
    "actor_rollout_ref.rollout.n=4",
    "realad.log.every=0",
    "trainer.save_freq=1",
    "trainer.total_training_steps=400",
    # Most deaths end the job at once; a rollout that never answers is the watchdog's.
    "realad.watchdog.phase_s=90",
)
# Seconds from the fault to the end of the job: the watchdog's limit and the time that dumping the stacks takes.
LIMIT = 240.0


def start_and_wait(folder, data, steps: int = 2, limit: float = 900):
    """A job that has finished ``steps`` steps, each with a checkpoint."""
    process = start(folder, data, *LONG)
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        metrics = folder / "metrics.jsonl"
        if metrics.exists() and metrics.read_text().count("\n") >= steps:
            return process
        assert process.poll() is None, (folder.parent / f"{folder.name}.log").read_text()[-3000:]
        time.sleep(0.5)
    process.kill()
    raise AssertionError("the job never reached its second step")


def saved(folder) -> int:
    return int((folder / "latest_checkpointed_iteration.txt").read_text())


def check_goes_on(folder, data) -> None:
    """Two more steps from the last checkpoint."""
    step = saved(folder)
    run = train(folder, data, *LONG, f"trainer.total_training_steps={step + 2}", resume=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert {step + 1, step + 2} <= set(run.steps())


def test_sigterm_saves_and_ends_well(tmp_path, prepared):
    folder = tmp_path / "run"
    process = start_and_wait(folder, prepared)
    process.send_signal(signal.SIGTERM)
    run = finish(process, folder, LIMIT)
    assert run.returncode == 0 and "--resume" in run.stderr, run.stderr[-3000:]
    assert not run.left_over
    assert saved(folder) == max(run.steps())
    check_goes_on(folder, prepared)


@pytest.mark.parametrize("part", ["WorkerDict", "VLLM::EngineCore", "AgentLoopWorker", "RewardLoopWorker"])
def test_a_dead_part_ends_the_job(tmp_path, prepared, part):
    folder = tmp_path / "run"
    process = start_and_wait(folder, prepared)
    victims = [p for p in descendants(str(folder)) if part in " ".join(p.cmdline())]
    assert victims, f"no process of {part}"
    victims[0].kill()
    run = finish(process, folder, LIMIT)
    assert run.returncode == 1, run.stderr[-3000:]
    assert "the run died in" in run.stderr and "resume: realad train" in run.stderr
    assert not run.left_over
    check_goes_on(folder, prepared)


def test_a_dead_launcher_leaves_nothing(tmp_path, prepared):
    folder = tmp_path / "run"
    process = start_and_wait(folder, prepared)
    process.kill()
    run = finish(process, folder, 60, grace=60)
    assert not run.left_over
    check_goes_on(folder, prepared)
