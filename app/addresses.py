"""The addresses under which people reach the server."""

from __future__ import annotations

import ipaddress
import socket

# Documentation's own networks (RFC 5737, RFC 3849). Nothing is sent to them: connecting only chooses a route.
_ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


def addresses(host: str, port: int) -> list[str]:
    """Return the addresses to open, the one for other machines first, for a server that listens on `host`.

    If `host` stands for every address of this machine, as 0.0.0.0 does, these are the one of its main network and the
    loopback address.
    """
    try:
        everywhere = not host or ipaddress.ip_address(host).is_unspecified
    except ValueError:  # a name
        everywhere = False
    if not everywhere:
        return [_address(host, port)]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    loopback = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    return [_address(name, port) for name in dict.fromkeys((_main(family) or loopback, loopback))]


def _main(family: socket.AddressFamily) -> str | None:
    """Return this machine's address in the network that leads elsewhere; None without one."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((_ELSEWHERE[family], 9))
            return str(probe.getsockname()[0])
        except OSError:
            return None


def _address(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
