"""A mail relay that answers what a test wants, over a real socket; it speaks just enough SMTP, and no TLS."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.waiting import PATIENCE


@dataclass
class Relay:
    """What it answers to RCPT by the recipient, where it leaves, and what it got, raw."""

    recipient: Callable[[str], str] = lambda _address: "250 2.1.5 ok"
    extensions: tuple[str, ...] = ()
    leaves_at_data: bool = False
    """Closes the connection instead of saying «go ahead»."""
    leaves_after_data: bool = False
    """Closes it when it has the text, and says nothing."""
    got: list[bytes] = field(default_factory=list)
    mailed: list[str] = field(default_factory=list)
    """The arguments of every MAIL."""

    @contextmanager
    def listening(self) -> Iterator[str]:
        relay = self

        class Talk(socketserver.StreamRequestHandler):
            def say(self, line: str) -> None:
                self.wfile.write(line.encode() + b"\r\n")

            def handle(self) -> None:
                self.say("220 relay")
                while line := self.rfile.readline().decode().strip():
                    word, _, rest = line.partition(" ")
                    match word.upper():
                        case "EHLO":
                            lines = ["relay", *relay.extensions]
                            for at, each in enumerate(lines):
                                self.say(f"250{' ' if at == len(lines) - 1 else '-'}{each}")
                        case "MAIL":
                            relay.mailed.append(rest)
                            self.say("250 2.1.0 ok")
                        case "RCPT":
                            self.say(relay.recipient(rest.partition("<")[2].partition(">")[0]))
                        case "DATA":
                            if relay.leaves_at_data:
                                return
                            self.say("354 go ahead")
                            text = b""
                            while (more := self.rfile.readline()) not in {b".\r\n", b""}:
                                text += more
                            relay.got.append(text)
                            if relay.leaves_after_data:
                                return
                            self.say("250 2.0.0 taken")
                        case "QUIT":
                            self.say("221 bye")
                            return
                        case _:
                            self.say("250 ok")

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        with Server(("127.0.0.1", 0), Talk) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            yield f"smtp://127.0.0.1:{server.server_address[1]}?starttls=never"
            server.shutdown()
            thread.join(PATIENCE)
