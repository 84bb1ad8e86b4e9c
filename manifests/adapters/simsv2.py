"""Read CH-SIMS v2, the supervised part: CH-SIMS annotated again, and as many new clips."""

from dataclasses import replace
from pathlib import Path

from manifests.adapters import AdapterResult, sims


def build(source: Path, media: bool = True) -> AdapterResult:
    """Read the table of utterances from ``meta.csv``; rows without a label are excluded."""
    built = sims.read("simsv2", source)
    labelled = built.table["label"].notna()
    if labelled.all():
        return built
    note = f"excluded {(~labelled).sum()} rows without a label: the unsupervised part"
    return replace(built, table=built.table[labelled], notes=[*built.notes, note])
