"""Loaded by every process of a job that imports verl (``VERL_USE_EXTERNAL_MODULES=spy``); writes down what it sees.

One file per process, ``$REALAD_SPY/PID.jsonl``, with two kinds of lines: what the plugin has registered so far, and
each call of the reward worker with the read-outs that were made in it.
"""

import functools
import json
import os
from pathlib import Path

from wrapt import register_post_import_hook

CALLS = ("compute_log_prob", "compute_ref_log_prob", "update_actor", "compute_evidence")


def write(**record) -> None:
    with (Path(os.environ["REALAD_SPY"]) / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


class Watched(list):
    """A list that writes itself down whenever it grows."""

    def append(self, item) -> None:
        super().append(item)
        write(active=list(self))


def watch_plugin(module) -> None:
    module._active = Watched(module._active)
    write(active=list(module._active))


def watch_worker(module) -> None:
    from realad_verl.attention.readout import AttentionReadout

    made = []
    reading = AttentionReadout.reading
    AttentionReadout.reading = lambda self, *a, **k: (made.append(1), reading(self, *a, **k))[1]

    def watched(name, original):
        @functools.wraps(original)
        def call(self, data):
            # With LoRA the reference is the actor without its adapter, through the same method; data is a BatchMeta.
            reference = name == "compute_ref_log_prob" or data.extra_info.get("no_lora_adapter", False)
            before = len(made)
            output = original(self, data)
            write(call=name, reference=bool(reference), readings=len(made) - before)
            return output

        return call

    for name in CALLS:
        setattr(module.ConsistencyRewardMixin, name, watched(name, getattr(module.ConsistencyRewardMixin, name)))


register_post_import_hook(watch_plugin, "realad_verl.verl_ext.plugin")
register_post_import_hook(watch_worker, "realad_verl.verl_ext.train.worker")
