"""Entry point of the ``verl.plugins`` group: verl imports this module in every process that imports verl.

It stays light. Importing verl's trainers costs tens of CPU seconds, which most processes of a job never need, so the
registrations wait until verl itself imports the registry they belong to (post-import hooks).

verl logs a plugin that fails to load at DEBUG level only. :func:`registered` says what is active, ``realad doctor``
prints it, and the trainer and the worker refuse to start without it (:func:`require_active`).
"""

import importlib
import os

from wrapt import register_post_import_hook

from realad_verl.verl_ext import repairs

_active: list[str] = []


def note(what: str) -> None:
    """Record that ``what`` is now registered; called by the modules that register."""
    _active.append(what)


def _import_when_loaded(verl_module: str, ours: str) -> None:
    """Import our module (which registers itself) as soon as verl's is imported, by whoever."""
    register_post_import_hook(lambda _: importlib.import_module(ours), verl_module)


def registered() -> list[str]:
    """What the plugin has registered in this process so far."""
    return list(_active)


def require_active(what: str) -> None:
    """Raise if ``what`` (e.g. ``"platform cpu"``) was not registered by the plugin in this process."""
    if what not in _active:
        raise RuntimeError(
            f"the realad_verl plugin is not active in process {os.getpid()}: '{what}' is not registered "
            f"(registered: {_active or 'nothing'}). verl hides a plugin that fails to load; run `realad doctor` in the "
            "same environment on this node, and check that VERL_USE_EXTERNAL_PLUGINS is not 'none'."
        )


def _activate() -> None:
    _active.append("plugin")
    if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
        from realad_verl.verl_ext import cpu

        _active.extend(cpu.activate())
    repairs.arm(repairs.EVERYWHERE)
    _import_when_loaded("verl.trainer.ppo.v1", "realad_verl.verl_ext.train.trainer")
    _import_when_loaded("verl.experimental.agent_loop", "realad_verl.verl_ext.train.agent_loop")
    _import_when_loaded("verl.workers.engine.fsdp.transformer_impl", "realad_verl.verl_ext.train.engine")


_activate()
