"""What a recipe asks of the machines and of the data that it will meet: packages, rows, disk. One function a rule."""

import importlib.metadata
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

from realad_verl.verl_ext.recipe.problem import Problem, Rule, Setup

ROLLOUT = "actor_rollout_ref.rollout"
BACKEND = f"{ROLLOUT}.checkpoint_engine.backend"
# verl 0.9.1's engines that bring weights to other processes, and what each imports.
ENGINES = {
    "nccl": ("cupy",),
    "hccl": ("torch_npu",),
    "nixl": ("nixl", "cupy"),
    "mooncake": ("mooncake",),
    "kimi_ckpt_engine": ("checkpoint_engine",),
    "delta_sharded": ("cupy",),
}
GLOO = "realad_verl.verl_ext.cpu.gloo_engine"
MIB = 1024**2


def filter_keeps_consistency(s: Setup) -> Iterator[Problem]:
    """DAPO's filter looks at the rewards while sampling, before the consistency reward is there."""
    weight = s.get("realad.w_cons", 0)
    if s.get("algorithm.filter_groups.enable") and s.is_cgro and weight:
        yield Problem(
            "algorithm.filter_groups.enable",
            True,
            f"drops groups of equal format and accuracy before R_cons (realad.w_cons = {weight}) is known: those are "
            "what only the consistency reward could teach",
            "false, or realad.w_cons=0",
        )


def checkpoint_engine(s: Setup) -> Iterator[Problem]:
    if not s.is_separate:
        return
    backend, module = s.get(BACKEND), s.get(f"{ROLLOUT}.checkpoint_engine.custom_backend_module")
    if s.config.trainer.device == "cpu":
        if (backend, module) != ("gloo", GLOO):
            fix = f"gloo with checkpoint_engine.custom_backend_module={GLOO}, as in local/cgro_tiny_cpu_async"
            yield Problem(BACKEND, backend, "needs a device or another module (trainer.device = cpu)", fix)
        return
    if backend not in ENGINES and backend != "naive" and not module:  # naive has a rule of its own
        yield Problem(BACKEND, backend, f"verl has {', '.join(ENGINES)}; others need custom_backend_module", "nccl")
    missing = [name for name in ENGINES.get(backend, ()) if _gpu_stack() and importlib.util.find_spec(name) is None]
    if missing and not module:
        yield Problem(
            BACKEND,
            backend,
            f"verl's engine imports {', '.join(missing)}, which is not installed here",
            "install it on every node: make setup-gpu brings cupy",
        )


def _gpu_stack() -> bool:
    """Whether this is a GPU environment at all: a recipe may be checked anywhere."""
    try:
        return not importlib.metadata.version("vllm").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False


def order_can_be_repeated(s: Setup) -> Iterator[Problem]:
    if s.get("realad.deterministic") and s.trainer_mode.endswith("async"):
        yield Problem(
            "realad.deterministic",
            True,
            f"{s.trainer_mode} samples with whichever weights are there: no two runs are equal",
            "false, or trainer.v1.trainer_mode=cgro_sync",
            "warning",
        )


def batch_fits_data(s: Setup) -> Iterator[Problem]:
    import pyarrow.parquet

    files = s.get("data.train_files")
    names = [files] if isinstance(files, str) else list(files or [])
    paths = [Path(name).expanduser() for name in names if "://" not in name]
    if not paths or len(paths) < len(names) or not all(path.is_file() for path in paths):
        return
    try:
        rows = sum(pyarrow.parquet.read_metadata(path).num_rows for path in paths)
    except pyarrow.ArrowInvalid:
        return  # the rule on data files says what is wrong
    limit = s.get("data.train_max_samples", -1)
    rows = min(rows, limit) if limit > 0 else rows
    batch = s.config.data.train_batch_size
    if 0 < rows < batch:
        fix = f"at most {rows}, or more data"
        yield Problem("data.train_batch_size", batch, f"the training data has {rows} rows: no batch is ever full", fix)


def checkpoints_fit_disk(s: Setup) -> Iterator[Problem]:
    """Where this machine could run the recipe, and sees the run folder's disk."""
    from realad_verl.verl_ext.recipe.estimate import plan

    if s.config.trainer.save_freq <= 0 or s.facts is None or not (s.config.trainer.device == "cpu" or _gpu_stack()):
        return
    folder = Path(s.config.trainer.default_local_dir).expanduser().absolute()
    there = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if there is None or (there == Path("/") and folder != there):
        return  # a shared folder that this machine does not see
    needed = {line.name: line.value * MIB for line in plan(s.config).disk}
    most = needed.get("checkpoints of the run", needed.get("a checkpoint", 0))
    free = shutil.disk_usage(there).free
    if most > free:
        yield Problem(
            "trainer.max_actor_ckpt_to_keep",
            s.get("trainer.max_actor_ckpt_to_keep"),
            f"the checkpoints take {most / 2**30:.1f} GiB, {there} has {free / 2**30:.1f} GiB free",
            "another trainer.default_local_dir, fewer of them, or actor.checkpoint.save_lora_only=true",
            "warning",
        )


CLUSTER: tuple[Rule, ...] = (
    filter_keeps_consistency,
    checkpoint_engine,
    order_can_be_repeated,
    batch_fits_data,
    checkpoints_fit_disk,
)
