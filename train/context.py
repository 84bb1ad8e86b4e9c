"""What was said before an utterance, for language models that read it as context."""

from __future__ import annotations

from bisect import bisect_left

import pandas as pd


def has_context(table: pd.DataFrame) -> bool:
    """Whether a manifest's table tells what was said before its utterances."""
    return "context" in table or bool(_known(table).any())


def preceding(rows: pd.DataFrame, turns: int) -> list[list[str]]:
    """The last ``turns`` utterances before each row, whoever spoke them, oldest first.

    From the column ``context`` (one utterance a line) where there is one, else from ``dialogue``
    and ``turn``: only rows given here count, so give all rows of a split and of that split alone.
    A row without a dialogue, and the first of one, has no context.

    Args:
        rows: a manifest's rows; those whose extraction failed were said all the same.
        turns: most utterances to take, at least 1.
    """
    if "context" in rows:
        lines = (str(text).split("\n") if text else [] for text in rows["context"].fillna(""))
        return [_said(context[-turns:]) for context in lines]
    before: list[list[str]] = [[] for _ in range(len(rows))]
    known = rows.assign(place=range(len(rows)))[_known(rows).to_numpy()]
    for _, dialogue in known.sort_values("turn", kind="stable").groupby("dialogue"):
        when, texts = dialogue["turn"].tolist(), dialogue["text"].fillna("").tolist()
        for place, turn in zip(dialogue["place"], when, strict=True):
            earlier = bisect_left(when, turn)  # rows of one turn do not precede each other
            before[place] = _said(texts[max(0, earlier - turns) : earlier])
    return before


def _known(rows: pd.DataFrame) -> pd.Series:
    return rows["dialogue"].notna() & rows["turn"].notna()


def _said(texts: list[str]) -> list[str]:
    return [text for text in texts if text.strip()]
