"""CH-SIMS v2, the supervised part: CH-SIMS again, annotated anew, and as much beside it."""

from dataclasses import replace
from pathlib import Path

from manifests.adapters import AdapterResult, sims


def build(source: Path, media: bool = True) -> AdapterResult:
    """The table of utterances of ``meta.csv``; rows without a label, the unsupervised, are left."""
    built = sims.read("simsv2", source)
    labelled = built.table["label"].notna()
    if labelled.all():
        return built
    note = f"left out {(~labelled).sum()} rows without a label: the unsupervised part"
    return replace(built, table=built.table[labelled], notes=[*built.notes, note])
