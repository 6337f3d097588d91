"""Files as a vendor: a folder that the environment names, or one behind SFTP."""

from __future__ import annotations

from pathlib import Path

from polydesk_dagster.remote import Policy
from polydesk_dagster.sources.files.folders import Folder, LocalFolder, SftpFolder
from polydesk_dagster.sources.files.maps import FilesSettings
from polydesk_dagster.sources.files.source import Files
from polydesk_dagster.sources.port import Numbers, Secret
from polydesk_dagster.values import Reason


class FilesVendor:
    """Opens a clinic's files."""

    settings = FilesSettings
    news = Numbers.NONE

    def epoch(self, settings: FilesSettings) -> str:
        return f"files {settings.url or settings.token}"

    def open(self, clinic: str, settings: FilesSettings, secret: Secret, policy: Policy | None = None) -> Files:
        system = Reason("system_source", {"of": clinic})
        given = secret(settings.token)
        folder: Folder
        if settings.url is None:
            folder = LocalFolder(Path(given), system)
        else:
            user, host_key = settings.user or "", settings.host_key or ""
            folder = SftpFolder(settings.url, user, host_key, given, system, policy or Policy())
        return Files(settings, self.epoch(settings), folder, system)


VENDOR = FilesVendor()
