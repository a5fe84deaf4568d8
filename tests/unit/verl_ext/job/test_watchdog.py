"""The watchdog: what is overdue, and that a stuck main thread is freed with the cause."""

import subprocess
import time

import psutil
import pytest

from realad_verl.verl_ext.job.watchdog import STACKS, PartDied, PhaseTimeout, Watchdog, dump_stacks
from realad_verl.verl_ext.run_folder import heartbeat


def test_nothing_is_overdue_within_the_limit(tmp_path):
    heartbeat.write(tmp_path, "sampling responses", step=3, total_steps=9)
    assert Watchdog(tmp_path, 10, 10).overdue(time.time() + 9) is None


def test_overdue_phase_is_named_with_its_setting(tmp_path):
    heartbeat.write(tmp_path, "sampling responses", step=3, total_steps=9)
    message = Watchdog(tmp_path, 0, 10).overdue(time.time() + 11)
    assert message and "sampling responses" in message and "step 3" in message and "phase_s = 10" in message


def test_start_has_a_limit_of_its_own(tmp_path):
    assert "start_s = 5" in (Watchdog(tmp_path, 5, 0).overdue(time.time() + 6) or "")
    heartbeat.write(tmp_path, "starting workers")
    assert "starting workers" in (Watchdog(tmp_path, 5, 0).overdue(time.time() + 6) or "")


def test_zero_is_no_limit(tmp_path):
    assert Watchdog(tmp_path, 0, 0).overdue(time.time() + 1e9) is None


def test_a_stuck_main_thread_is_freed(tmp_path):
    heartbeat.write(tmp_path, "sampling responses", step=1, total_steps=9)
    began = time.monotonic()
    with pytest.raises(PhaseTimeout, match="sampling responses"), Watchdog(tmp_path, 0, 0.2, interval=0.1):
        time.sleep(120)
    assert time.monotonic() - began < 100
    assert "=== " in (tmp_path / STACKS).read_text()


def test_a_dump_that_cannot_be_written_still_ends_the_job(tmp_path):
    """As on a full disk: here the file's place is taken by a folder."""
    heartbeat.write(tmp_path, "sampling responses", step=1, total_steps=9)
    (tmp_path / STACKS).mkdir()
    with pytest.raises(PhaseTimeout, match="could not be written"), Watchdog(tmp_path, 0, 0.2, interval=0.1):
        time.sleep(60)


def test_a_part_that_died_is_named(tmp_path):
    """A real process with a vLLM worker's title is killed; another, of a title that comes and goes, is not missed."""
    heartbeat.write(tmp_path, "updating the rollout's weights", step=1, total_steps=9)
    titles = ("VLLM::Worker", "ray::IDLE")
    part, other = (subprocess.Popen(["bash", "-c", f"exec -a {title} sleep 100"]) for title in titles)
    try:
        said = pytest.raises(PartDied, match=rf"^lost VLLM::Worker \(pid {part.pid}\):")
        with said, Watchdog(tmp_path, 0, 60, interval=0.1, grace_s=1.0):
            time.sleep(1)
            other.kill()
            time.sleep(2)
            part.kill()
            time.sleep(60)
    finally:
        for process in (part, other):
            process.kill()
            process.wait()


def test_a_fork_that_ends_is_no_lost_part(tmp_path):
    """A subprocess that a part starts carries the part's title at first (W&B's service, git)."""
    heartbeat.write(tmp_path, "sampling responses", step=1, total_steps=9)
    named = "exec -a ray::TaskRunnerV1.run"
    part = subprocess.Popen(["bash", "-c", f"{named} bash -c '({named} sleep 1.5); {named} sleep 100'"])
    try:
        with Watchdog(tmp_path, 0, 60, interval=0.1, grace_s=0.5) as watchdog:
            time.sleep(1)
            forked = psutil.Process(part.pid).children()
            assert [p.cmdline()[0] for p in forked] == ["ray::TaskRunnerV1.run"]
            time.sleep(3)
            assert not forked[0].is_running() and watchdog.lost() == []
    finally:
        part.kill()
        part.wait()


def test_a_dump_has_a_limit(tmp_path):
    dump_stacks(tmp_path / STACKS, limit_s=0)
    text = (tmp_path / STACKS).read_text()
    assert "=== " in text and "no time left" in text


def test_heartbeat_round_trip_and_stop(tmp_path):
    assert heartbeat.read(tmp_path) is None and not heartbeat.stop_requested(tmp_path)
    heartbeat.write(tmp_path, "validating", 2, 5)
    beat = heartbeat.read(tmp_path)
    assert beat is not None and (beat.phase, beat.step, beat.total_steps) == ("validating", 2, 5)
    heartbeat.request_stop(tmp_path)
    assert heartbeat.stop_requested(tmp_path)
    heartbeat.clear(tmp_path)
    assert heartbeat.read(tmp_path) is None and not heartbeat.stop_requested(tmp_path)
