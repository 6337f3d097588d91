"""The knowledge base of this installation: where its documents and its index are, and who makes its vectors."""

from datetime import datetime
from pathlib import Path

import sqlalchemy as sa

from polydesk_dagster import settings as configuration
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.knowledge import indexing
from polydesk_dagster.knowledge.embedding import Embedder, Endpoint, LocalModel, Packaged
from polydesk_dagster.knowledge.library import Library
from polydesk_dagster.knowledge.reranking import reranker
from polydesk_dagster.resources.meaning import packaged_runs_here, words_alone
from polydesk_dagster.settings import Settings
from polydesk_dagster.values import Reason


def library(settings: Settings) -> Library:
    """As the settings say; the index is under the home unless they name another place."""
    uri = settings.knowledge_uri or str(settings.home / "knowledge")
    order = reranker(settings.reranker) if settings.reranker else None
    return Library(settings.documents_folder, uri, _embedder(settings), order, words_alone(settings))


def _embedder(settings: Settings) -> Embedder | None:
    if settings.embeddings_model is None:
        return Packaged() if packaged_runs_here() else None
    if settings.packaged_embeddings:
        return Packaged()
    if settings.embeddings_model == configuration.NO_MODEL:
        return None
    if settings.embeddings_url is None:
        return LocalModel(Path(settings.embeddings_model))
    key = settings.embeddings_key.get_secret_value() if settings.embeddings_key else None
    return Endpoint(settings.embeddings_url, settings.embeddings_model, key)


def why_no_indexing(connection: sa.Connection, as_of: datetime) -> Reason | None:
    """Why a blue run need not start now, or None if it should; what is wrong is left to the run to say."""
    try:
        due = indexing.anything_due(connection, library(configuration.load()), as_of)
    except PolydeskError:
        return None
    return None if due else Reason("nothing_to_index")
