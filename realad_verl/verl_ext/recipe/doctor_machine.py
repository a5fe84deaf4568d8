"""The machine's side of ``realad doctor``: GPUs and driver, flash-attn, cupy, Ray, folders."""

import importlib
import importlib.metadata as metadata
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

OK, WARN, FAIL = "ok", "warn", "fail"
# CUDA's major version and the oldest Linux driver that runs it (NVIDIA's compatibility table).
DRIVERS = {11: 450, 12: 525, 13: 580}
DRIVER_FILE = Path("/proc/driver/nvidia/version")
# A Unix socket's path has room for 107 bytes; Ray's lie below TMPDIR/ray/session_DATE/sockets, about this much.
SOCKET_LIMIT, RAY_SOCKET = 107, 72
LOW_DISK_GIB = 20
WITHOUT_FLASH = "set use_remove_padding=false and attn_implementation=sdpa, as paper/qwen2_5_vl_7b_lora_sdpa"


@dataclass(frozen=True)
class Finding:
    """One line of the report: ``status`` is ok, warn or fail; a failure's ``detail`` says the cause and the fix."""

    name: str
    status: str
    detail: str


def version_of(distribution: str) -> str | None:
    """What is installed of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def check_machine() -> list[Finding]:
    """Everything of this machine that a run needs."""
    import torch

    count, cuda = torch.cuda.device_count(), torch.version.cuda
    findings = [_driver(_driver_version(), cuda, count)]
    if count:
        names = {torch.cuda.get_device_name(i) for i in range(count)}
        findings += [Finding("devices", OK, f"{count} x {', '.join(sorted(names))}"), _flash(), _cupy()]
    else:
        cpu = os.environ.get("VERL_PLATFORM", "").lower() == "cpu"
        how = "VERL_PLATFORM=cpu is set" if cpu else "recipes with trainer.device=cpu run (local/), others do not"
        findings.append(Finding("devices", OK if cpu else WARN, f"no GPU; {os.cpu_count()} CPU cores; {how}"))
        findings.append(Finding("flash-attn", OK, "not needed on CPU"))
    return findings + [*_ray(), *_folders()]


def _driver_version() -> str | None:
    """Of the loaded kernel module, without calling NVIDIA's tools."""
    if not DRIVER_FILE.exists():
        return None
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", DRIVER_FILE.read_text())
    return found[1] if found else None


def _driver(driver: str | None, cuda: str | None, count: int) -> Finding:
    """``driver`` of the machine against ``cuda`` of torch's build; ``count`` GPUs are visible to torch."""
    if driver is None:
        return Finding("driver", OK, "no NVIDIA driver: nothing of CUDA can run here")
    if cuda is None:
        return Finding("driver", WARN, f"{driver}, but this torch is built without CUDA. Fix: make setup-gpu")
    major = int(cuda.split(".")[0])
    wanted = DRIVERS.get(major)
    if wanted is not None and int(driver.split(".")[0]) < wanted:
        fix = f"a driver >= {wanted}, or torch for an older CUDA"
        return Finding("driver", FAIL, f"{driver} is too old for CUDA {cuda}, which torch is built for. Fix: {fix}")
    if not count:
        why = "CUDA_VISIBLE_DEVICES, or the container's --gpus"
        return Finding("driver", FAIL, f"{driver} fits CUDA {cuda}, but torch sees no GPU. Look at: {why}")
    return Finding("driver", OK, f"{driver} for CUDA {cuda}")


def _flash() -> Finding:
    """flash-attn is imported, not looked for: one that was built for another torch is there and does not load."""
    found = version_of("flash-attn")
    if found is None:
        return Finding("flash-attn", WARN, f"not installed: {WITHOUT_FLASH}")
    try:
        importlib.import_module("flash_attn").flash_attn_varlen_func  # noqa: B018  (there is more than a name)
    except (ImportError, AttributeError, OSError) as error:
        return Finding("flash-attn", FAIL, f"{found} does not load: {error}. Fix: uninstall it, and {WITHOUT_FLASH}")
    return Finding("flash-attn", OK, found)


def _cupy() -> Finding:
    try:
        return Finding("cupy", OK, importlib.import_module("cupy").__version__)
    except (ImportError, OSError) as error:
        detail = f"does not load ({error}): cluster/4x8_async needs it (verl's nccl checkpoint engine), others do not"
        return Finding("cupy", WARN, detail)


def _ray() -> list[Finding]:
    address, mode = os.environ.get("RAY_ADDRESS"), os.environ.get("RAY_AUTH_MODE")
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    findings = [Finding("ray cluster", OK, address or "none named (RAY_ADDRESS): training starts a local one")]
    has = "RAY_AUTH_TOKEN" in os.environ or token.is_file()
    if mode == "token" and not has:
        findings.append(
            Finding("ray token", FAIL, f"RAY_AUTH_MODE=token, but no token in {token}. Fix: copy the head's")
        )
    elif mode == "token":
        findings.append(Finding("ray token", OK, f"RAY_AUTH_MODE=token, {token}"))
    elif address and has:
        why = f"there is a token ({token}), and a head that found one refuses who does not ask for it"
        findings.append(Finding("ray token", WARN, f"{why}. Fix: RAY_AUTH_MODE=token on every node"))
    elif address:
        why = "no token: whoever reaches that cluster's ports runs code on it"
        findings.append(Finding("ray token", WARN, f"{why}. Fix: RAY_AUTH_MODE=token, as recipes/launch do"))
    else:
        findings.append(
            Finding("ray token", OK, "a local Ray makes its own" if mode is None else f"RAY_AUTH_MODE={mode}")
        )
    return findings


def _folders() -> list[Finding]:
    outputs = Path(os.environ.get("REALAD_OUTPUTS") or "outputs").absolute()
    temp = Path(tempfile.gettempdir())
    findings = [_space("outputs", outputs), _space("temp folder", temp)]
    longest = len(os.fsencode(temp)) + RAY_SOCKET
    if longest > SOCKET_LIMIT:
        room = SOCKET_LIMIT - RAY_SOCKET
        detail = f"TMPDIR={temp} has {len(os.fsencode(temp))} bytes: Ray's sockets need paths below {SOCKET_LIMIT}"
        findings.append(Finding("TMPDIR", FAIL, f"{detail}. Fix: TMPDIR of at most {room} bytes, such as /tmp"))
    return findings


def _space(name: str, folder: Path) -> Finding:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free / 2**30
    return Finding(name, OK if free >= LOW_DISK_GIB else WARN, f"{folder}: {free:.0f} GiB free")
