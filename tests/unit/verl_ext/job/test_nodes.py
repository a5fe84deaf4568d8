"""Addresses that other machines can use, and waits that end."""

import socket
import subprocess
import sys
import threading
import time

import pytest

from realad_verl.errors import UserError
from realad_verl.verl_ext.job import nodes


def own_address() -> str:
    found = nodes._addresses()
    if not found:
        pytest.skip("this machine has no address beside its loopback")
    return next(iter(found))


@pytest.mark.parametrize("peer", ["localhost", "127.0.0.1", "127.0.1.1"])
def test_a_loopback_is_no_address_of_a_head(peer):
    with pytest.raises(UserError, match="loopback"):
        nodes.address_towards(peer)


def test_an_unknown_host_is_named():
    with pytest.raises(UserError, match=r"nowhere\.invalid"):
        nodes.address_towards("nowhere.invalid")


def test_own_address_and_its_interface():
    own = own_address()
    assert nodes.address_towards(own) == own == nodes.address_towards(None)
    assert nodes.interface_of(own) in dict(socket.if_nameindex()).values()
    with pytest.raises(UserError, match="no address of this machine"):
        nodes.interface_of("203.0.113.7")


def test_a_wait_ends_with_its_reason():
    began = time.monotonic()
    with pytest.raises(UserError, match=r"a thing: not within 1 s: not yet"):
        nodes.wait(lambda: "not yet", 1, "a thing")
    assert time.monotonic() - began < 5


def test_a_port_that_opens_later():
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{server.getsockname()[1]}"
    assert "nothing listens" in (nodes.listening(address) or "")
    threading.Timer(1.5, server.listen).start()
    nodes.wait(lambda: nodes.listening(address), 30, "a port")
    server.close()


@pytest.mark.parametrize("hangs", [False, True])
def test_the_command_says_why_and_fails(hangs):
    """Also where the question itself never returns: the process ends a few seconds after the limit."""
    sleep = "import time; nodes.joined = lambda *_: time.sleep(99); " if hangs else ""
    code = (
        f"from realad_verl.verl_ext.job import nodes; {sleep}nodes.main(['joined', '127.0.0.1:9', '2', '--limit', '1'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "2 Ray nodes: not within 1 s" in done.stderr, done.stderr
    assert hangs or "nothing listens at 127.0.0.1:9" in done.stderr
