"""Runs recorded and executed in this process, as Dagster's own launcher does in one that it starts for each."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.runtime import pythons
from polydesk_dagster.runtime.forks.fitness import why_not_loaded
from polydesk_dagster.runtime.work import Worker

if TYPE_CHECKING:
    from dagster import DagsterEvent, DagsterInstance, DagsterRun
    from dagster._core.code_pointer import CodePointer
    from dagster._core.remote_origin import CodeLocationOrigin, GrpcServerCodeLocationOrigin


def code(pointer: str) -> Any:
    """The ``ReconstructableRepository`` that a serialized code pointer names.

    The public ``reconstructable`` takes a function, not the pointer that a run was recorded with.
    """
    from dagster._core.definitions.reconstruct import ReconstructableRepository
    from dagster._core.origin import DEFAULT_DAGSTER_ENTRY_POINT
    from dagster._serdes import deserialize_value

    pythons.spare_first()
    return ReconstructableRepository(
        cast("CodePointer", deserialize_value(pointer)),
        executable_path=sys.executable,
        entry_point=DEFAULT_DAGSTER_ENTRY_POINT,
    )


def loaded(pointer: str) -> Any:
    """:func:`code` whose definitions load.

    Raises:
        PermanentError: they do not.
    """
    found = code(pointer)
    try:
        found.get_definition()
    except Exception as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            raise
        raise PermanentError("code_not_loaded", why=why_not_loaded(error)) from error
    return found


def opened(reference: str | None) -> DagsterInstance:
    """The instance that a serialized reference names; None: that of DAGSTER_HOME.

    The public ``DagsterInstance.get`` knows the environment's instance only, while a run belongs to its launcher's.
    """
    from dagster import DagsterInstance
    from dagster._core.instance.ref import InstanceRef
    from dagster._serdes import deserialize_value

    if reference is None:
        return DagsterInstance.get()
    return DagsterInstance.from_ref(deserialize_value(reference, InstanceRef))


def origin(socket: Path, location: str) -> GrpcServerCodeLocationOrigin:
    """A location as a workspace names it by its code server's socket, so that a run recorded elsewhere belongs to it.

    Public calls that record a run leave its origin out, and the page then shows it outside of every location.
    """
    from dagster._core.remote_origin import GrpcServerCodeLocationOrigin

    return GrpcServerCodeLocationOrigin(host="localhost", socket=str(socket), location_name=location)


def create(
    instance: DagsterInstance,
    *,
    code: Any,
    job_name: str,
    run_config: Mapping[str, object],
    tags: Mapping[str, str],
    location: CodeLocationOrigin,
    run_id: str | None,
) -> DagsterRun:
    """Record a new run of a job as the UI does: with its job's own tags, and the origins that link it to its location.

    ``code`` is the ``ReconstructableRepository`` that the job comes from. The public ``execute_job`` records and
    executes in one and takes no origin.

    Raises:
        dagster.DagsterInvalidConfigError: if the job does not take this config.
        dagster.DagsterInvariantViolationError: if the location has no such job.
    """
    from dagster._core.remote_origin import RemoteJobOrigin, RemoteRepositoryOrigin

    repository = code.get_definition()
    job = repository.get_job(job_name)
    remote = RemoteRepositoryOrigin(location, repository.name)
    return instance.create_run_for_job(
        job,
        run_id=run_id,
        run_config=run_config,
        tags={**job.run_tags, **tags},
        remote_job_origin=RemoteJobOrigin(remote, job_name),
        job_code_origin=code.get_reconstructable_job(job_name).get_python_origin(),
        repository_load_data=repository.repository_load_data,
    )


def execute(instance: DagsterInstance, run_id: str, on_event: Callable[[DagsterEvent], object]) -> bool:
    """Execute a run that exists, in this process. Returns whether it succeeded; its history says why not.

    A run that another process has taken is left to it: a launch that went unanswered is asked for again. It is what
    Dagster's run worker does; the public ``execute_job`` cannot take up a run that is recorded already.
    """
    from dagster._cli.api import _execute_run_command_body

    run = instance.get_run_by_id(run_id)
    if run is None or Worker.of_run(run) is not None:
        return True
    instance.add_run_tags(run_id, Worker.of_process(run_id, os.getpid()).tag())
    return _execute_run_command_body(run_id, instance, on_event, set_exit_code_on_failure=True) == 0


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run in the block as canceled, its end recorded. Only the main thread is told of
    signals: in another one, as under the door, they are somebody else's.

    Dagster's run worker and its ``dagster job execute`` do this; nothing public gives it to another program.
    """
    from dagster._utils.interrupts import capture_interrupts, setup_interrupt_handlers

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    setup_interrupt_handlers()
    with capture_interrupts():
        yield
