"""Where the simulators of outside systems listen."""

from __future__ import annotations

import socket

from polydesk_dagster.commands.simulators import free_port


def test_a_port_is_given_once_though_nobody_listens_there_yet() -> None:
    """Two demos that begin at the same time: the second one's messages would go to the first one's relay."""
    port = 21081
    first = free_port(port)
    second = free_port(port)
    assert first != second
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", first))
        listening.listen()
