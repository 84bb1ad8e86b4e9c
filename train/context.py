"""Collect the utterances before each utterance, as context for a language model."""

from __future__ import annotations

from bisect import bisect_left

import pandas as pd


def has_context(table: pd.DataFrame) -> bool:
    """Whether a manifest's table has preceding utterances."""
    return "context" in table or bool(_known(table).any())


def preceding(rows: pd.DataFrame, turns: int) -> list[list[str]]:
    """Return the last ``turns`` utterances before each row, of all speakers, oldest first.

    Taken from the column ``context`` (one utterance per line) if it exists, else from ``dialogue``
    and ``turn`` of the given rows: pass all rows of exactly one split. A row without a dialogue and
    the first row of a dialogue have no context.

    Args:
        rows: a manifest's rows, including those whose extraction failed.
        turns: maximum number of utterances, at least 1.
    """
    if "context" in rows:
        lines = (str(text).split("\n") if text else [] for text in rows["context"].fillna(""))
        return [_not_blank(context[-turns:]) for context in lines]
    before: list[list[str]] = [[] for _ in range(len(rows))]
    known = rows.assign(place=range(len(rows)))[_known(rows).to_numpy()]
    for _, dialogue in known.sort_values("turn", kind="stable").groupby("dialogue"):
        when, texts = dialogue["turn"].tolist(), dialogue["text"].fillna("").tolist()
        for place, turn in zip(dialogue["place"], when, strict=True):
            earlier = bisect_left(when, turn)  # rows of one turn do not precede each other
            before[place] = _not_blank(texts[max(0, earlier - turns) : earlier])
    return before


def _known(rows: pd.DataFrame) -> pd.Series:
    return rows["dialogue"].notna() & rows["turn"].notna()


def _not_blank(texts: list[str]) -> list[str]:
    return [text for text in texts if text.strip()]
