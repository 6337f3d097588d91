"""The index of the clinic's documents, from which the assistant is given its passages."""

from collections.abc import Iterator
from dataclasses import replace

import dagster as dg

from polydesk_dagster.knowledge import indexing
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.resources import knowledge, meaning
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import Run, ServiceConfig, Shown, serve, shown
from polydesk_dagster.told import teller
from polydesk_dagster.told.dagster import picture

YELLOW = "reindex_knowledge"
INDEX = ["knowledge", "index"]


class KnowledgeConfig(ServiceConfig):
    """What indexing can be asked; the job of the yellow icon reads everything from zero by itself."""

    from_zero: bool = False
    """Read every document again into a new generation."""
    rollback: bool = False
    """Only answer from the generation before the current one again."""
    past_guard: str | None = None
    """``too_many_removals`` retires what the guard would hold back; give it only after looking at the folder."""


@dg.asset(
    key=INDEX,
    group_name="knowledge",
    kinds={"lancedb", "postgres"},
    tags={"polydesk/records": "document"},
    description=teller().text("asset.index"),
    output_required=False,
    code_version="1",
)
def index(context: dg.AssetExecutionContext, config: KnowledgeConfig, polydesk: PolydeskResource) -> Iterator[Shown]:
    from_zero = config.from_zero or config.rollback or context.run.job_name == YELLOW

    def rule(run: Run) -> Report:
        if config.rollback:
            return indexing.roll_back(run.engine, preview=run.preview)
        work = indexing.rebuild if from_zero else indexing.refresh
        report = work(
            run.engine,
            run.as_of,
            knowledge.library(run.settings),
            preview=run.preview,
            past_guard=config.past_guard,
            progress=run.progress,
        )
        alone = meaning.words_alone(run.settings)
        told = alone is not None and report.outcome not in (Outcome.SKIPPED, Outcome.REFUSED, Outcome.FAILED)
        return replace(report, reasons=(*report.reasons, alone)) if alone and told else report

    report = serve(context, polydesk, YELLOW if from_zero else "index_knowledge", config, rule)
    looks_back = from_zero and not config.preview
    drawn = picture(context.run.run_id, "index_probes", "index_probes_by_generation") if looks_back else {}
    yield shown(context, INDEX, report, **drawn)


ASSETS = (index,)
