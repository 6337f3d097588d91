"""What a step prints, kept in files: Dagster's local store of compute logs without its helper processes.

Dagster's own starts four processes a step to copy the output to the terminal as well, and one that is killed leaves
them behind for a while. Here a step's output goes straight to its files, where the UI reads it as usual.

A compute log manager of one's own is supported by configuration, but neither its base classes nor the redirection of
a stream are exported by ``dagster``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagster._core.execution.compute_logs import redirect_to_file
from dagster._core.storage.compute_log_manager import CapturedLogContext, ComputeIOType
from dagster._core.storage.local_compute_log_manager import IO_TYPE_EXTENSION, LocalComputeLogManager
from dagster._serdes import ConfigurableClassData


class FileComputeLogManager(LocalComputeLogManager):
    """Configured like ``LocalComputeLogManager``: ``base_dir``, ``polling_timeout``."""

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> FileComputeLogManager:
        return cls(inst_data=inst_data, **config_value)

    @contextmanager
    def capture_logs(self, log_key: Sequence[str]) -> Iterator[CapturedLogContext]:
        paths = {
            kind: Path(self.get_captured_local_path(log_key, IO_TYPE_EXTENSION[kind]))
            for kind in (ComputeIOType.STDOUT, ComputeIOType.STDERR)
        }
        for path in paths.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        with (
            redirect_to_file(sys.stdout, str(paths[ComputeIOType.STDOUT])),
            redirect_to_file(sys.stderr, str(paths[ComputeIOType.STDERR])),
        ):
            yield CapturedLogContext(log_key)
        Path(self.get_captured_local_path(log_key, "complete")).touch()
