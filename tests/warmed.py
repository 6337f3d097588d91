"""Imported by the process that programs of tests are forked from: what their runs need is there already."""

from polydesk_dagster.runtime.forks import ready

ready.make()
