"""Print the summary of an extraction, and the estimate of a dry run."""

from __future__ import annotations

from rich.table import Table

from extract.engine import Summary
from extract.plan import ExtractionEstimate
from extract.progress import reason_lines
from manifests.console import Console
from manifests.printing import clock, preview


def print_summary(console: Console, summary: Summary, seconds: float) -> None:
    """Print the result of an extraction that took ``seconds``."""
    for line in _origin(summary):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    # One row per value: as columns they do not fit into a log's 80 characters.
    table = Table(show_header=False)
    if summary.carried:
        table.add_row("carried over", str(summary.carried))
        table.add_row("extracted", str(summary.extracted))
        table.add_row("of a replaced video", str(summary.replaced))
    table.add_row("utterances", str(sum(summary.statuses.values())))
    for status, count in summary.statuses.items():
        table.add_row(status, str(count))
    for modality, count in summary.frames.items():
        table.add_row(f"{modality} frames", str(count))
    table.add_row("video", f"{summary.seconds:.1f} s")
    table.add_row("took", f"{seconds:.1f} s")
    console.print(table)
    for line in reason_lines(summary.failures):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if summary.statuses.get("failed"):
        console.print(
            "Once these files are repaired, run the same command. To try them again as they "
            "are, add --retry-failed (make: ARGS=--retry-failed)."
        )
    console.print(f"store: {summary.store}", soft_wrap=True)


def _origin(summary: Summary) -> list[str]:
    """Sentences on where the features come from."""
    lines = []
    if summary.shared:
        lines.append(f"Pulled from {summary.shared}: nothing to decode.")
    elif summary.complete:
        lines.append("The store is complete: nothing to decode.")
    if summary.names_only:
        lines.append(
            "It has format version 1: only the names of the videos were compared, not their "
            f"contents. To record the contents: python -m cache upgrade {summary.store}"
        )
    elif summary.shared:
        lines.append(
            "Names and sizes of the videos were compared, not their contents. To compare them: "
            f"python -m cache sources {summary.store}"
        )
    if summary.resumed:
        lines.append(f"Resumed: {summary.resumed} utterances are from an earlier run.")
    if summary.carried:
        saved = ""
        if summary.saved_s is not None:
            saved = f", which saved about {clock(summary.saved_s)}"
        shared = f" ({summary.borrowed} from a share)" if summary.borrowed else ""
        lines.append(f"Carried over: {summary.carried} utterances{shared} were not decoded{saved}.")
    if summary.removed:
        lines.append(f"Removed: {summary.removed} utterances are no longer in the manifest.")
    if summary.gone:
        lines.append(
            f"Carried over although the video is missing: {preview(list(summary.gone), 5)}"
        )
    return lines


def print_estimate(console: Console, estimate: ExtractionEstimate | None) -> None:
    """Print the result of a dry run."""
    if estimate is None:
        console.print("The store is complete: nothing to do.")
        return
    table = Table("utterances", "video", "blocks", "store", "workers", "time")
    took = "unknown (none of the sampled files could be read)"
    if estimate.took is not None:
        took = f"about {clock(estimate.took)}"
    table.add_row(
        str(estimate.utterances),
        f"about {estimate.seconds / 3600:.2f} h",
        str(estimate.blocks),
        f"about {estimate.bytes / 1e6:.1f} MB",
        str(estimate.workers),
        took,
    )
    console.print(table)
    console.print("Nothing was written.")
