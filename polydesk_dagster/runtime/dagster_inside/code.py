"""The code locations of an installation served by one process: ``python -P -m … FORMAT LOCATION …``, a location as
JSON ``[name, module, socket]``.

Each has a server of its own, with its own socket and threads: for whoever asks it is as if each had a process. One that
does not load says so to whoever asks for it, and leaves the others as they are. ``dagster api grpc`` serves but one
location, and ends when it does not load.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Sequence
from typing import Any

from polydesk_dagster.home import keep_to_ourselves
from polydesk_dagster.runtime import pythons
from polydesk_dagster.runtime.dagster_inside import quiet, signals


def main(arguments: Sequence[str]) -> None:
    """Serve until SIGTERM, or until one of the servers ends. ``arguments``: the format of the log's lines, then the
    locations; those that come last are served first."""
    from dagster._utils.log import configure_loggers

    keep_to_ourselves()
    pythons.spare_first()
    log_format, *locations = arguments
    quiet.code_server()
    signals.heed()
    configure_loggers(formatter=log_format, log_level="WARNING")
    end = threading.Event()
    serving = []
    try:
        for location in reversed(locations):
            name, module, socket = json.loads(location)
            server = _server(name, module, socket, end)
            serving.append(threading.Thread(target=_serve, args=(server, end)))
            serving[-1].start()
        end.wait()
    except KeyboardInterrupt:
        pass
    finally:
        end.set()
        for thread in serving:
            thread.join()


def _serve(server: Any, end: threading.Event) -> None:
    try:
        server.serve()
    finally:
        end.set()


def _server(name: str, module: str, socket: str, end: threading.Event) -> Any:
    """Dagster's server of one location, as its command makes it."""
    from dagster._core.origin import DEFAULT_DAGSTER_ENTRY_POINT
    from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
    from dagster._core.utils import FuturesAwareThreadPoolExecutor
    from dagster._grpc.server import DagsterApiServer, DagsterGrpcServer

    logger = logging.getLogger("dagster.code_server")
    threads = FuturesAwareThreadPoolExecutor()
    servicer = DagsterApiServer(
        server_termination_event=end,
        logger=logger,
        server_threadpool_executor=threads,
        loadable_target_origin=LoadableTargetOrigin(executable_path=sys.executable, module_name=module),
        lazy_load_user_code=True,
        entry_point=DEFAULT_DAGSTER_ENTRY_POINT,
        location_name=name,
    )
    return DagsterGrpcServer(
        server_termination_event=end,
        dagster_api_servicer=servicer,
        logger=logger,
        threadpool_executor=threads,
        socket=socket,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
