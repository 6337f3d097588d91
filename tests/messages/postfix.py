"""A real Postfix of this machine on the loopback, with a configuration, a queue and a mailbox of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import debian
from tests.waiting import PATIENCE, until
from tests.web.world import free_port

_MAIN = """
compatibility_level = 3.6
queue_directory = {root}/queue
data_directory = {root}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = relay.example
mydestination = clinica.example
local_recipient_maps =
alias_maps =
alias_database =
inet_interfaces = loopback-only
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = reject_unauth_destination
smtputf8_enable = yes
virtual_mailbox_domains = example.org
virtual_mailbox_base = {root}/mail
virtual_mailbox_maps = static:all
virtual_uid_maps = static:{user}
virtual_gid_maps = static:{group}
virtual_minimum_uid = 1
maillog_file_prefixes = {root}
maillog_file = {root}/log
smtpd_discard_ehlo_keywords = {without}
"""
_MASTER = """
127.0.0.1:{port} inet n - n - - smtpd
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
virtual   unix  - n n - - virtual
error     unix  - - n - - error
retry     unix  - - n - - error
proxymap  unix  - - n - - proxymap
anvil     unix  - - n - 1 anvil
postlog   unix-dgram n - n - 1 postlogd
"""


_COMMAND = ("postfix", "-c")


@dataclass
class Postfix:
    """One that listens; ``url`` is where mail is handed to it."""

    url: str
    mailbox: Path

    def delivered(self) -> bytes:
        """The one letter that it has delivered, as it lies in the mailbox."""
        until(self.mailbox.exists)
        return self.mailbox.read_bytes()


@contextmanager
def running(*, without: str = "") -> Iterator[Postfix]:
    """``without``: what its greeting does not offer. Skips the test where there is no Postfix, or nobody who may start
    one.

    Its folder is none of pytest's: another session of that closes them to every account but its own."""
    if os.geteuid() != 0 or debian.program("postfix", package="postfix") is None:
        warnings.warn("NO POSTFIX HERE, OR NO ROOT: letters are not read after a real relay", stacklevel=1)
        pytest.skip("needs Debian's package postfix, and root to start it")
    nobody = Path("/var/lib/postfix").stat()
    root = Path(tempfile.mkdtemp(prefix="polydesk-postfix-", dir="/tmp"))
    root.chmod(0o755)
    config = root / "config"
    for folder in (config, root / "queue", root / "data", root / "mail"):
        folder.mkdir()
    for folder in (root / "data", root / "mail"):
        os.chown(folder, nobody.st_uid, nobody.st_gid)
    (config / "main.cf").write_text(_MAIN.format(root=root, user=nobody.st_uid, group=nobody.st_gid, without=without))
    relay, port = _listening(config)
    try:
        yield Postfix(f"smtp://127.0.0.1:{port}?starttls=never", root / "mail" / "all")
    finally:
        subprocess.run([*_COMMAND, str(config), "stop"], check=False, capture_output=True, timeout=PATIENCE)
        relay.wait(PATIENCE)
        shutil.rmtree(root, ignore_errors=True)


def _listening(config: Path) -> tuple[subprocess.Popen[bytes], int]:
    """One that answers, and its port. Its own ``start`` gives up on a busy machine; and somebody else may have taken
    the port meanwhile, which ends it."""
    for _ in range(10):
        port = free_port()
        (config / "master.cf").write_text(_MASTER.format(port=port))
        relay = subprocess.Popen(
            [*_COMMAND, str(config), "start-fg"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(lambda: relay.poll() is not None or _answers(port))  # noqa: B023  asked at once
        if relay.poll() is None:
            return relay, port
    log = config.parent / "log"
    raise AssertionError(f"postfix does not start: {log.read_text() if log.exists() else 'it says nothing'}")


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            return connection.recv(3) == b"220"
    except OSError:
        return False
