"""Two hosts on one machine: network, process and mount namespaces, joined by a veth pair. Needs root and iproute2."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NET = "10.77.{}"
START = """
set -e
ip link set lo up
mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray
# Shared memory is named after process ids, which are the same on both.
mount -t tmpfs tmpfs /dev/shm
exec "$@"
"""


class Hosts:
    """``addresses`` of both, and :meth:`start` to run something on one."""

    def __init__(self, tag: int):
        self.names = [f"realad{tag}a", f"realad{tag}b"]
        net = NET.format(tag % 250)
        self.addresses = [f"{net}.1", f"{net}.2"]
        self.running: list[subprocess.Popen] = []
        self._made: list[str] = []

    def make(self) -> None:
        for name in self.names:
            _ip("netns", "add", name)
            self._made.append(name)
        first, second = (f"v{name[6:]}" for name in self.names)
        _ip("link", "add", first, "type", "veth", "peer", "name", second)
        for name, link, address in zip(self.names, (first, second), self.addresses, strict=True):
            _ip("link", "set", link, "netns", name)
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            _ip("-n", name, "link", "set", link, "up")

    def wrap(self, host: int, *command: str) -> list[str]:
        """``command`` on a host, with processes and a /tmp/ray of its own: all of them end with it."""
        own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        return ["ip", "netns", "exec", self.names[host], *own, "bash", "-c", START, "start", *command]

    def start(self, host: int, *command: str, log: Path, env: dict[str, str]) -> subprocess.Popen:
        """Run ``command`` on a host, what it prints in ``log``."""
        with log.open("a") as out:
            process = subprocess.Popen(
                self.wrap(host, *command), stdout=out, stderr=out, env=env, start_new_session=True
            )
        self.running.append(process)
        return process

    def remove(self) -> None:
        for process in self.running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for name in self._made:
            _ip("netns", "del", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Two :class:`Hosts`, gone afterwards; skips where this machine cannot have them."""
    if shutil.which("ip") is None or shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root, iproute2 (ip) and util-linux (unshare)")
    hosts = Hosts(os.getpid() % 100000)
    try:
        try:
            hosts.make()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"cannot make network namespaces: {error.stderr.decode().strip()}")
        yield hosts
    finally:
        hosts.remove()
