"""What a CPU worker opens to the network: nothing beyond the loopback address."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, socket, sys
import psutil, torch.distributed as dist
if sys.argv[1] == "patched":
    from realad_verl.verl_ext.repairs import loopback_store
    loopback_store.repair(sys.modules["torch.distributed.rendezvous"])
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
listening = {c.laddr.ip for c in psutil.Process().net_connections("inet") if c.status == "LISTEN"}
group = dist.new_group([0])
dist.barrier(group)
dist.destroy_process_group()
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
dist.barrier()
print(json.dumps(sorted(listening)))
"""


@pytest.mark.parametrize("how, listening", [("patched", ["127.0.0.1"]), ("plain", ["127.0.0.1", "::"])])
def test_where_a_process_group_listens(how, listening, monkeypatch):
    """``plain`` shows what torch does, and that this test sees it. A second group on the same port works too."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [ip.removeprefix("::ffff:") for ip in json.loads(done.stdout.splitlines()[-1])]
    assert found == listening
