"""What doctor says of a machine that this one is not."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from realad_verl.verl_ext.recipe import doctor_machine as machine


@pytest.mark.parametrize(
    ("driver", "cuda", "count", "status", "words"),
    [
        (None, None, 0, "ok", "no NVIDIA driver"),
        ("580.65.06", "13.0", 8, "ok", "580.65.06 for CUDA 13.0"),
        ("550.54.14", "13.0", 8, "fail", ">= 580"),
        ("580.65.06", "13.0", 0, "fail", "sees no GPU"),
        ("580.65.06", None, 0, "warn", "make setup-gpu"),
        ("900.1", "99.0", 1, "ok", "CUDA 99.0"),
    ],
)
def test_driver_against_cuda(driver, cuda, count, status, words):
    found = machine._driver(driver, cuda, count)
    assert found.status == status and words in found.detail


def test_driver_of_the_kernel_module(tmp_path, monkeypatch):
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U16)\n"
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(machine, "DRIVER_FILE", tmp_path / "version")
    assert machine._driver_version() == "580.65.06"


def test_flash_attn_is_imported(monkeypatch):
    assert machine._flash().status == "warn"  # not here
    monkeypatch.setattr(machine, "version_of", lambda _: "2.8.3")
    # Another torch's build is there and does not load.
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    assert machine._flash().status == "fail"
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=print))
    assert machine._flash() == machine.Finding("flash-attn", "ok", "2.8.3")


@pytest.mark.parametrize(
    ("env", "status", "words"),
    [
        ({}, "ok", "a local Ray makes its own"),
        ({"RAY_AUTH_MODE": "token"}, "fail", "no token in"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"}, "ok", "RAY_AUTH_MODE=token"),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, "warn", "runs code"),
        ({"RAY_ADDRESS": "10.0.0.1:6379", "RAY_AUTH_TOKEN": "x"}, "warn", "on every node"),
    ],
)
def test_authentication_of_ray(env, status, words, monkeypatch, tmp_path):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    found = machine._ray()[1]
    assert found.status == status and words in found.detail


@pytest.mark.parametrize(("length", "fails"), [(4, False), (35, False), (36, True), (90, True)])
def test_a_long_tmpdir(length, fails, monkeypatch):
    monkeypatch.setattr(machine.tempfile, "gettempdir", lambda: "/" + "t" * (length - 1))
    found = [f for f in machine._folders() if f.name == "TMPDIR"]
    assert bool(found) == fails and all(f.status == "fail" and "at most 35" in f.detail for f in found)


def test_a_full_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * 2**30))
    assert machine._space("outputs", tmp_path / "new" / "run") == machine.Finding(
        "outputs", "warn", f"{tmp_path / 'new' / 'run'}: 3 GiB free"
    )
