"""torch's rendezvous store listens on the loopback address where that is what it was told.

Without it the store of every worker and of vLLM listens on all interfaces, without authentication.
"""

import ipaddress
import socket
from typing import Any

TARGET = "torch.distributed.rendezvous"
SEEN_IN = ("torch 2.11.0",)


def repair(module: Any) -> None:
    """Patch ``module.TCPStore`` (torch.distributed.rendezvous)."""
    original = module.TCPStore

    def store(host_name: str, port: int, is_master: bool = False, **options):
        if is_master and _is_loopback(host_name):
            try:
                listener = socket.create_server((host_name, port))
            except OSError:  # this process serves the port already: torch shares that store
                pass
            else:
                options["master_listen_fd"] = listener.detach()
        return original(host_name=host_name, port=port, is_master=is_master, **options)

    module.TCPStore = store


def _is_loopback(host_name: str) -> bool:
    try:
        address = ipaddress.ip_address(host_name)
    except ValueError:
        return host_name == "localhost"
    return address.version == 4 and address.is_loopback
