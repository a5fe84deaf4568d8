"""What happens in each process of a job: the plugin is active in all of them, and only the actor's pass reads out."""

import json
import os
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from jobs import descendants, finish, start
from test_training import SMALL, check_metrics

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

WITH_REFERENCE = ("actor_rollout_ref.actor.use_kl_loss=true", "actor_rollout_ref.actor.kl_loss_coef=0.01")
LORA_TWO_RANKS = (
    "actor_rollout_ref.model.lora_rank=8",
    "actor_rollout_ref.model.exclude_modules='.*visual.*'",
    "trainer.n_gpus_per_node=2",
)
# Ray's names of the processes in which verl runs, and what must be registered there.
NEEDED = {
    "TaskRunner": {"plugin", "platform cpu", "trainer cgro_sync"},
    "WorkerDict": {"plugin", "platform cpu", "engine cgro_language_model"},
    "vLLMHttpServer": {"plugin", "platform cpu"},
    "AgentLoopWorker": {"plugin", "platform cpu"},
    "RewardLoopWorker": {"plugin", "platform cpu"},
}


def records(spied: Path) -> dict[int, list[dict]]:
    return {
        int(path.stem): [json.loads(line) for line in path.read_text().splitlines()] for path in spied.glob("*.jsonl")
    }


@pytest.mark.parametrize("layout", [(), LORA_TWO_RANKS], ids=["full", "lora_two_ranks"])
def test_every_process_has_the_plugin_and_the_reference_reads_nothing(tmp_path, prepared, layout):
    spied = tmp_path / "spied"
    spied.mkdir()
    env = {
        "VERL_USE_EXTERNAL_MODULES": "spy",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        "REALAD_SPY": str(spied),
    }
    folder = tmp_path / "run"
    job = start(folder, prepared, *SMALL, *WITH_REFERENCE, *layout, "trainer.total_training_steps=3", env=env)
    titles: dict[int, set[str]] = defaultdict(set)
    began = time.monotonic()
    while job.poll() is None and time.monotonic() < began + 900:
        for process in descendants(str(folder)):
            with suppress(psutil.Error):
                titles[process.pid].add(" ".join(process.cmdline()).strip())
        time.sleep(2)
    run = finish(job, folder, 1)
    assert run.returncode == 0, run.stderr[-3000:]
    assert not run.left_over
    check_metrics(run, 3)
    seen = records(spied)

    for lines in seen.values():
        assert any("plugin" in line.get("active", ()) for line in lines)
    for part, needed in NEEDED.items():
        pids = [pid for pid in seen if any(title.startswith(f"ray::{part}") for title in titles[pid])]
        assert pids, f"no process of {part} among {[t for pid in seen for t in titles[pid]]}"
        for pid in pids:
            active = [set(line["active"]) for line in seen[pid] if "active" in line]
            assert needed <= active[-1], (part, active[-1])

    calls = [line for lines in seen.values() for line in lines if "call" in line]
    reference = [line for line in calls if line["reference"]]
    actor = [line for line in calls if line["call"] == "compute_log_prob" and not line["reference"]]
    ranks = 2 if layout else 1
    assert len(reference) == len(actor) == 3 * ranks
    assert all(line["readings"] == 0 for line in reference)
    assert all(line["readings"] > 0 for line in actor)
    assert all(line["readings"] == 0 for line in calls if line["call"] == "update_actor")
