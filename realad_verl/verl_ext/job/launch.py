"""From a recipe to a running job: verl's own ``run_ppo`` on a local or an existing Ray cluster."""

import os
import signal
import threading
import traceback
from pathlib import Path

import psutil
from omegaconf import DictConfig, OmegaConf, open_dict

from realad_verl.errors import UserError
from realad_verl.verl_ext.job.parts import ray_children
from realad_verl.verl_ext.job.progress import RunProgress
from realad_verl.verl_ext.job.watchdog import Watchdog
from realad_verl.verl_ext.names import SEEDED_AGENT_LOOP
from realad_verl.verl_ext.recipe.data.check_rows import total_steps
from realad_verl.verl_ext.recipe.data.model_text import template_opens
from realad_verl.verl_ext.recipe.problem import Setup
from realad_verl.verl_ext.run_folder import heartbeat
from realad_verl.verl_ext.run_folder.cause import in_one_line, is_death, is_without_material
from realad_verl.verl_ext.run_folder.checkpoints import last_complete, repair_tracker
from realad_verl.verl_ext.settings import RealadSettings

METRICS = "metrics.jsonl"
ERROR = "error.txt"
# What the CPU stack needs in every process of the job. Threads: one per process, since a CPU job runs several processes
# a core; nobind: vLLM-CPU otherwise pins itself to cores that the others use.
CPU_ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "RAY_agent_register_timeout_ms": "120000",
    # vLLM compiles one small function for the log-probs of its samples: half a minute of every job's first step here.
    "TORCH_COMPILE_DISABLE": "1",
    # Ray nices its workers by 15: behind anything else that runs on a laptop, a job would hardly move.
    "RAY_worker_niceness": "0",
}
# On one machine nothing needs to be reached from outside. The name is Ray's: without "clusters", Ray binds everything
# to the loopback address.
LOOPBACK_ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# Passed on to every Ray process where set: a sweep keeps its identity on a cluster that was started beforehand.
FORWARDED_PREFIXES = ("WANDB_", "HF_", "REALAD_", "VERL_", "VLLM_", "NCCL_", "GLOO_", "OMP_")
WANDB_PATHS = ("WANDB_DIR", "WANDB_SWEEP_PARAM_PATH")
# Never forwarded: verl prints the runtime environment and stores the configuration. Workers of a local Ray inherit them
# from this process; on a cluster that was started beforehand, log in on the nodes (`wandb login`, `hf auth login`).
SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")


def run_folder(config: DictConfig) -> Path:
    """The absolute folder of a run: metrics.jsonl, samples and checkpoints."""
    return Path(config.trainer.default_local_dir).expanduser().resolve()


def _is_local(config: DictConfig) -> bool:
    """Whether the run is on this machine's CPU alone, with a Ray of its own."""
    return config.trainer.device == "cpu" and config.trainer.nnodes == 1 and "RAY_ADDRESS" not in os.environ


def environment(config: DictConfig) -> dict[str, str]:
    """The environment variables that every process of the job needs; what the user has set already wins."""
    wanted = {"RAY_USAGE_STATS_ENABLED": "0"}
    if config.trainer.device == "cpu":
        wanted |= CPU_ENVIRONMENT
        if _is_local(config):
            wanted |= LOOPBACK_ENVIRONMENT
    if Path(config.actor_rollout_ref.model.path).expanduser().is_dir():
        wanted["HF_HUB_OFFLINE"] = "1"
    return {key: os.environ.get(key, value) for key, value in wanted.items()}


def set_environment(config: DictConfig) -> None:
    """Put :func:`environment` into this process. Before verl is imported: verl picks its platform at import."""
    os.environ.update(environment(config))


def _may_forward(name: str) -> bool:
    return name.startswith(FORWARDED_PREFIXES) and not any(word in name.upper() for word in SECRET_WORDS)


def prepare(config: DictConfig, resume: bool = False) -> None:
    """Make ``config`` ready to run, in place: absolute folders, environment of this process and of Ray's.

    Call it before verl is imported: verl picks its platform at import. Raises UserError when the run folder holds a run
    already and ``resume`` is False, or holds none to resume.
    """
    folder = run_folder(config)
    metrics = _metrics_file(config, resume)
    variables = environment(config) | {"VERL_FILE_LOGGER_PATH": str(metrics)}
    # W&B hands a sweep's parameters over by a path below WANDB_DIR: the process that logs may have another folder.
    variables |= {k: str(Path(os.environ[k]).absolute()) for k in WANDB_PATHS if k in os.environ}
    variables.setdefault("WANDB_DIR", str(folder))
    os.environ.update(variables)
    forwarded = {k: v for k, v in os.environ.items() if _may_forward(k)} | variables
    settings = RealadSettings.from_config(config)
    with open_dict(config):
        if settings.method.spans.opened_by_template == "auto":
            opens = template_opens(Setup(config), settings.method.spans, download=True)
            if opens is not None:
                config.realad.method.spans.opened_by_template = opens
        if settings.deterministic:
            config.actor_rollout_ref.rollout.agent.default_agent_loop = SEEDED_AGENT_LOOP
            if config.trainer.device == "cpu":
                # After part of a prompt vLLM sets a seeded request's generator back, which PyTorch's CPU one can't do.
                config.actor_rollout_ref.rollout.enable_chunked_prefill = False
        config.trainer.default_local_dir = str(folder)
        config.trainer.resume_mode = "auto" if resume else "disable"
        ray_init = config.ray_kwargs.setdefault("ray_init", {})
        ray_init.setdefault("runtime_env", {}).setdefault("env_vars", {})
        ray_init.runtime_env.env_vars = forwarded | dict(ray_init.runtime_env.env_vars)
        if _is_local(config):
            # Otherwise Ray joins whatever cluster it finds on this machine.
            ray_init.setdefault("address", "local")
        if "RAY_ADDRESS" in os.environ:
            # The cluster is there already, with resources of its own; Ray refuses these for a driver that joins.
            for key in ("num_cpus", "num_gpus", "object_store_memory", "include_dashboard"):
                ray_init.pop(key, None)
    folder.mkdir(parents=True, exist_ok=True)
    heartbeat.clear(folder)
    OmegaConf.save(config, folder / "config.yaml", resolve=True)


def _metrics_file(config: DictConfig, resume: bool) -> Path:
    """Where this part of the run writes its metrics: verl's logger truncates, so a resumed part gets its own file."""
    folder = run_folder(config)
    step = last_complete(folder)
    if resume:
        if step is None:
            raise UserError(f"--resume: {folder} holds no whole checkpoint. Train without --resume.")
        total = total_steps(config)
        if total is not None and step >= total:
            raise UserError(
                f"--resume: {folder} has a checkpoint of step {step}, and the recipe ends at step {total}: nothing is "
                "left to train. Raise trainer.total_training_steps or trainer.total_epochs."
            )
        repair_tracker(folder)
        return folder / f"metrics.after-{step:06d}.jsonl"
    if (folder / METRICS).exists() or step is not None:
        way_on = (
            f" with a checkpoint at step {step}. Add --resume to continue it, or name"
            if step is not None
            else " without a whole checkpoint. Remove it, or name"
        )
        raise UserError(
            f"trainer.default_local_dir = {folder} already holds a run{way_on} another folder: "
            "trainer.default_local_dir=NEW."
        )
    return folder / METRICS


class _StopOnSigterm:
    """verl's task runner class, with our SIGTERM handler installed when verl creates the runner.

    Pre-emption: SIGTERM lets the step finish, saves, and ends the run so that it can be resumed. ``ray.init``, which
    ``run_ppo`` calls right before, puts a handler of its own in place that exits at once; so ours must come after it.
    """

    def __init__(self, runner, folder: Path):
        self.runner, self.folder = runner, folder

    def options(self, **options) -> "_StopOnSigterm":
        return _StopOnSigterm(self.runner.options(**options), self.folder)

    def remote(self):
        signal.signal(signal.SIGTERM, lambda *_: heartbeat.request_stop(self.folder))
        return self.runner.remote()


class RunFailed(Exception):
    """A run that died: the message says in which phase, of what, and where to go on."""


def _failure(folder: Path, error: BaseException, lost: list[str]) -> RunFailed:
    """Keep the whole traceback in the run folder; tell the person what died and what is saved.

    ``lost``: processes of the run that are gone, which the error itself may not name.
    """
    where = "The whole traceback is above"
    try:
        (folder / ERROR).write_text("".join(traceback.format_exception(error)))
        where = f"The whole traceback is in {folder / ERROR}"
    except OSError:  # a full disk may be what ended the run
        traceback.print_exception(error)
    beat, step = heartbeat.read(folder), last_complete(folder)
    phase = f"'{beat.phase}' of step {beat.step}" if beat is not None else "'starting Ray'"
    saved = f"The last checkpoint is of step {step}: go on with --resume." if step else "Nothing was saved yet."
    named = lost and (is_death(error) or is_without_material(error))
    gone = f" Gone: {', '.join(lost[:5])}." if named else ""
    return RunFailed(
        f"the run died in {phase}: {type(error).__name__}: {in_one_line(error)}"
        f"{gone}\n{saved} "
        f"{where}; Ray's logs are under /tmp/ray/session_latest/logs."
    )


def shut_down_ray(limit_s: float = 15.0, grace_s: float = 5.0) -> None:
    """``ray.shutdown``, and an end to what of a local Ray outlives it.

    It gets ``limit_s`` seconds, since it waits for a control store that may have died; then Ray's processes below this
    one have ``grace_s`` seconds to follow.
    """
    import ray

    left = ray_children()
    thread = threading.Thread(target=ray.shutdown, name="ray shutdown", daemon=True)
    thread.start()
    thread.join(limit_s)
    _, alive = psutil.wait_procs({*left, *ray_children()}, timeout=grace_s)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=grace_s)


def train(config: DictConfig, resume: bool = False) -> int | None:
    """Run a recipe to its end. Blocks; Ctrl-C shuts the local Ray down before it propagates.

    Returns None when the run finished, or the step at which it stopped on request (SIGTERM), saved and resumable.
    Raises RunFailed when a part of the job dies, or stands still longer than the watchdog allows.
    """
    limits = RealadSettings.from_config(config).watchdog
    prepare(config, resume)

    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config
    from verl.utils.device import auto_set_device

    from realad_verl.verl_ext.plugin import require_active

    require_active("plugin")
    auto_set_device(config)
    validate_config(config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    folder = run_folder(config)
    watchdog = Watchdog(folder, limits.start_s, limits.phase_s)
    try:
        metrics = Path(os.environ["VERL_FILE_LOGGER_PATH"])
        with RunProgress(folder, metrics), watchdog:
            run_ppo(config, task_runner_class=_StopOnSigterm(TaskRunnerV1, folder))
    except Exception as error:
        if type(getattr(error, "cause", None)).__name__ == "StopRequested":
            return last_complete(folder)
        raise _failure(folder, error, watchdog.lost()) from error
    finally:
        shut_down_ray()
    return None
