"""One line that names the part that died, out of texts that Ray 2.60 produced when parts of a run were killed."""

from realad_verl.verl_ext.run_folder.cause import in_one_line, is_death

ACTOR = """The actor died unexpectedly before finishing this task.
\tclass_name: create_colocated_worker_cls.<locals>.WorkerDict
\tactor_id: 5f056d8596a178f9add3740b01000000
\tpid: 25947
\tname: 1qedobWorkerDict_0:0
\tip: 127.0.0.1
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed \
by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed unexpectedly."""
TASK = """ray::TaskRunnerV1.run() (pid=25100, ip=127.0.0.1, actor_id=7c247f1c)
  File "verl/trainer/ppo/v1/trainer_base.py", line 485, in fit
    self._save_checkpoint()
ValueError: no such thing

"""


def test_the_actor_that_died_is_named():
    line = in_one_line(RuntimeError(ACTOR))
    assert line.startswith("WorkerDict (pid 25947) died. The actor is dead because its worker process has died.")
    assert is_death(RuntimeError(ACTOR)) and not is_death(RuntimeError(TASK))
    assert "common causes" not in line and "\n" not in line


def test_an_error_in_an_actor_is_not_a_death():
    assert in_one_line(RuntimeError(TASK)) == "ValueError: no such thing"
    assert in_one_line(RuntimeError()) == ""
    assert len(in_one_line(RuntimeError("x" * 10_000))) == 300
