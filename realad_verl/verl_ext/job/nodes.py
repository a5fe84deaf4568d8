"""Several machines before a run: the address that others reach this one by, and a wait for them that ends.

What the files in recipes/launch call, on a node of the cluster, with the environment's ``python``:

    python -m realad_verl.verl_ext.job.nodes address [PEER]          # this machine's address towards PEER
    python -m realad_verl.verl_ext.job.nodes interface ADDRESS       # the network interface that has ADDRESS
    python -m realad_verl.verl_ext.job.nodes port ADDRESS:PORT       # wait until somebody listens there
    python -m realad_verl.verl_ext.job.nodes joined ADDRESS:PORT N   # wait until N nodes are in the Ray cluster there

The last two take ``--limit SECONDS`` and end with exit code 1 and the reason.
"""

import argparse
import ipaddress
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

import psutil

from realad_verl.errors import UserError

INTERVAL_S, TOLD_EVERY_S = 1.0, 10.0


def address_towards(peer: str | None) -> str:
    """The IPv4 address of this machine that ``peer`` (a name or an address, perhaps this machine's own) sees.

    Without a peer any address that is no loopback. UserError where ``peer`` is unknown, or its address is a loopback:
    other machines would look for it on themselves.
    """
    if peer is None:
        if not (found := _addresses()):
            raise UserError("this machine has no IPv4 address beside its loopback.")
        return next(iter(found))
    try:
        target = socket.getaddrinfo(peer, None, socket.AF_INET, socket.SOCK_DGRAM)[0][4]
    except OSError as error:
        raise UserError(f"{peer} is no IPv4 address and no known host: {error}.") from error
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target[0], 9))  # a datagram socket sends nothing on connect
        except OSError as error:
            raise UserError(f"this machine has no route to {peer} ({target[0]}): {error}.") from error
        own = probe.getsockname()[0]
    if ipaddress.ip_address(own).is_loopback:
        raise UserError(
            f"{peer} is {target[0]} here, a loopback address: other machines would look for it on themselves. Name it "
            f"by an address of the network between the machines; this one has {', '.join(_addresses()) or 'none'}."
        )
    return own


def interface_of(address: str) -> str:
    """The name of the network interface of this machine that has ``address``; UserError where none has."""
    found = _addresses()
    if address not in found:
        raise UserError(f"{address} is no address of this machine. It has {', '.join(found) or 'none'}.")
    return found[address]


def _addresses() -> dict[str, str]:
    """IPv4 addresses of this machine without loopbacks, and the interface of each."""
    pairs = ((a.address, name) for name, all_of in psutil.net_if_addrs().items() for a in all_of if a.family == 2)
    return {address: name for address, name in pairs if not ipaddress.ip_address(address).is_loopback}


def wait(ready: Callable[[], str | None], limit_s: float, what: str) -> None:
    """Call ``ready`` until it returns None; what it returns instead is why not yet, and is told now and then.

    UserError after ``limit_s`` seconds. A call that hangs ends this process at the limit.
    """
    began, told, missing = time.monotonic(), -TOLD_EVERY_S, "no answer"

    def hangs() -> None:
        print(f"error: {what}: not within {limit_s:g} s: {missing}.", file=sys.stderr, flush=True)
        os._exit(1)

    guard = threading.Timer(limit_s + 5, hangs)
    guard.daemon = True
    guard.start()
    try:
        while (reason := ready()) is not None:
            missing, waited = reason, time.monotonic() - began
            if waited >= limit_s:
                raise UserError(f"{what}: not within {limit_s:g} s: {missing}.")
            if waited - told >= TOLD_EVERY_S:
                print(f"waiting for {what}: {missing} ({limit_s - waited:.0f} s left)", file=sys.stderr, flush=True)
                told = waited
            time.sleep(INTERVAL_S)
    finally:
        guard.cancel()


def listening(address: str) -> str | None:
    """None if somebody listens at ``address`` (HOST:PORT), else why not."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError as error:
        return f"nothing listens at {address} ({error})"
    return None


def joined(address: str, nodes: int) -> str | None:
    """None if ``nodes`` nodes are alive in the Ray cluster at ``address``, else who is there. Joins as a driver."""
    import ray
    from ray.exceptions import AuthenticationError

    if not ray.is_initialized():
        if (reason := listening(address)) is not None:
            return reason
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except AuthenticationError as error:
            raise UserError(f"the Ray cluster at {address} refuses this process: {error}") from error
        except (ConnectionError, RuntimeError) as error:
            return f"the Ray cluster at {address} does not answer ({str(error).splitlines()[0]})"
    alive = sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
    return None if len(alive) >= nodes else f"{len(alive)} of {nodes} nodes are there: {', '.join(alive)}"


def main(arguments: list[str] | None = None) -> None:
    """The commands of this module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m realad_verl.verl_ext.job.nodes")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("address").add_argument("peer", nargs="?")
    commands.add_parser("interface").add_argument("address")
    for name in ("port", "joined"):
        command = commands.add_parser(name)
        command.add_argument("address")
        command.add_argument("--limit", type=float, default=600.0)
        if name == "joined":
            command.add_argument("nodes", type=int)
    given = parser.parse_args(arguments)
    try:
        if given.command == "address":
            print(address_towards(given.peer))
        elif given.command == "interface":
            print(interface_of(given.address))
        elif given.command == "port":
            wait(lambda: listening(given.address), given.limit, f"a Ray head at {given.address}")
        else:
            wait(lambda: joined(given.address, given.nodes), given.limit, f"{given.nodes} Ray nodes")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)  # not sys.exit: Ray's own exit handler may wait for what has died


if __name__ == "__main__":
    main()
