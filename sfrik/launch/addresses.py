"""The addresses of the caller's node in a SLURM job, and the one that another node reaches.

The name of a compute node need not resolve, on the other nodes or even on itself, and may resolve to its loopback interface. So
the caller sends all its addresses, each worker connects to the first that answers, and gloo uses the interface to it.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

from sfrik.errors import SfrikError
from sfrik.launch.slurm_client import call_client

__all__ = ["addresses_of_this_node", "reachable_address", "use_interface_to"]

TRY_SECONDS = 5.0  # for one address
SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


def addresses_of_this_node() -> list[str]:
    """The address that SLURM has for this node, those of its interfaces, and its name."""
    found = []
    if node := os.environ.get("SLURMD_NODENAME"):
        with suppress(SfrikError):  # the others remain
            found = re.findall(r"\bNodeAddr=(\S+)", call_client("scontrol", "show", "node", node, "--oneliner"))
    found += [address for address in _interfaces().values() if not _is_loopback(address)]
    return list(dict.fromkeys([*found, socket.gethostname()]))


def reachable_address(hosts: Sequence[str], port: int) -> str:
    """The first address at which something listens on the port, a loopback address last.

    Raises:
        SfrikError: none answers; each is named with the reason.
    """
    reasons = {}
    for host in sorted(dict.fromkeys(hosts), key=_is_loopback):
        reasons[host] = _try(host, port)
        if not reasons[host]:
            return host
    tried = ", ".join(f"{host} ({reason})" for host, reason in reasons.items())
    raise SfrikError(f"{socket.gethostname()} cannot connect to port {port} of the node that started the workers; tried {tried}")


def use_interface_to(host: str, port: int) -> None:
    """Let gloo use the interface that reaches an address, where this node's own name does not lead to one of its interfaces.

    gloo would otherwise listen on the loopback interface, and the other nodes would wait for it.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ or _name_is_usable():
        return
    with socket.create_connection((host, port), TRY_SECONDS) as connection:
        here = connection.getsockname()[0]
    if name := next((name for name, address in _interfaces().items() if address == here), None):
        os.environ["GLOO_SOCKET_IFNAME"] = name


def _try(host: str, port: int) -> str:
    """Why an address does not answer, empty if it does. Resolving a name has no time limit of its own, hence the thread."""
    outcome = [f"no answer within {TRY_SECONDS:.0f} s"]

    def connect() -> None:
        try:
            socket.create_connection((host, port), TRY_SECONDS).close()
            outcome[0] = ""
        except OSError as error:
            outcome[0] = error.strerror or str(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(TRY_SECONDS + 1)
    return outcome[0]


def _name_is_usable() -> bool:
    """Whether this node's name resolves to an address of one of its interfaces beside the loopback interface."""
    with suppress(OSError):
        for family, kind, _, _, address in socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM):
            if not _is_loopback(str(address[0])):
                with suppress(OSError), socket.socket(family, kind) as probe:
                    probe.bind((address[0], 0))
                    return True
    return False


def _interfaces() -> dict[str, str]:
    """The IPv4 address of each interface, by its name; empty on other systems than Linux."""
    found: dict[str, str] = {}
    if sys.platform != "linux":
        return found
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no IPv4 address
                request = struct.pack("256s", name.encode())
                found[name] = socket.inet_ntoa(fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24])
    return found


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:  # a name
        return host == "localhost"
