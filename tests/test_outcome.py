"""What an outcome says to people."""

from __future__ import annotations

from polydesk_dagster.outcome import COUNT_WORDS, Counts, in_words


def test_counts_are_read_out_in_the_singular_and_the_plural() -> None:
    counts = Counts(created=1, updated=2, skipped=1).as_dict()
    assert in_words(counts) == "1 creato, 2 modificati, 1 saltato"
    assert in_words(counts, english=True) == "1 created, 2 updated, 1 skipped"
    assert in_words(Counts().as_dict()) == ""


def test_every_count_has_a_regular_plural() -> None:
    assert all(italian.endswith("i") for italian, _ in COUNT_WORDS.values())
