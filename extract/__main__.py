"""``python -m extract DATASET``: decode every video once and publish its features."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cache.share.remote_store import SHARES, configured_shares
from cache.store.recipe import DTYPES
from extract.encoders import BACKENDS, NAMES, PRECISIONS, EncoderSpec
from extract.engine import Summary, dry_run, extract
from extract.plan import ExtractionEstimate
from extract.progress import View, clock, reason_lines
from extract.sampling import Sampling
from extract.settings import ClusterSpec, Settings
from manifests import Manifest

console = Console()

EXIT_SOME_FAILED = 3


def parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog=prog,
        description="Decode every video of a dataset once and publish its features as a store that "
        "training reads. Interrupt it whenever you like: run it again and it goes on.",
        epilog="Exit status: 0 all utterances extracted, 1 error, 2 wrong usage, "
        f"{EXIT_SOME_FAILED} the store is published but some utterances failed.",
    )
    p.add_argument("dataset", help="name of a built manifest (data/<name>) or its folder")
    p.add_argument(
        "--data", type=Path, help="folder of the videos (default: the manifest's folder)"
    )
    p.add_argument("--root", type=Path, default=Path("stores"), help="where stores go (stores)")
    p.add_argument("--encoder", choices=NAMES, help="frozen encoder (default: the dataset's card)")
    p.add_argument("--checkpoint", type=Path, help="weights file of the encoder imagebind")
    p.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    p.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="of the encoder's matrix products; bf16 suits GPUs (fp32)",
    )
    p.add_argument(
        "--backend",
        choices=BACKENDS,
        default="transformers",
        help="who computes imagebind; package: its authors' own modules (transformers)",
    )
    p.add_argument("--fps", type=float, default=2.0, help="frames a second (2)")
    p.add_argument(
        "--window",
        type=float,
        default=2.0,
        help="audio window in seconds, at most 2.04 with imagebind (2)",
    )
    p.add_argument(
        "--channel", choices=["mix", "first"], default="mix", help="audio channels (mix)"
    )
    p.add_argument(
        "--vision",
        choices=["image", "tubelet"],
        default="image",
        help="stills, or pairs of images 0.25 s apart (image)",
    )
    p.add_argument(
        "--crops",
        type=int,
        choices=[1, 3],
        default=1,
        help="squares of a picture: its centre, or three along its longer side (1)",
    )
    p.add_argument(
        "--crop-rows",
        choices=["separate", "mean"],
        default="mean",
        help="of three crops, their mean, or three rows a frame, which training does not read "
        "(mean)",
    )
    p.add_argument("--dtype", choices=DTYPES, default="float16", help="stored type (float16)")
    p.add_argument(
        "--workers", type=int, help="processes (one per core; with --device cuda one per GPU)"
    )
    p.add_argument(
        "--memory-limit", metavar="SIZE", help="of each worker, such as 8GB (a share of all memory)"
    )
    p.add_argument("--scheduler", help="address of a running Dask scheduler, instead of --workers")
    p.add_argument(
        "--slurm",
        type=Path,
        metavar="PROFILE",
        help="run --workers SLURM jobs (documentation: extraction.md)",
    )
    p.add_argument(
        "--timeout",
        type=float,
        default=600.0,
        help="seconds that decoding a file may take; of processor time where cores are short (600)",
    )
    p.add_argument(
        "--share",
        action="append",
        default=[],
        metavar="URL",
        help="look there first for these features: a folder, s3://, gs://, http(s)://, ssh://; may "
        f"be repeated, and ${SHARES} may name more, separated by commas",
    )
    p.add_argument("--no-share", action="store_true", help="extract whatever the shares hold")
    p.add_argument(
        "--retry-failed", action="store_true", help="extract what failed before, and only that"
    )
    p.add_argument(
        "--dry-run", action="store_true", help="say what would be done and how long it may take"
    )
    p.add_argument("--allow-failures", action="store_true", help="exit 0 although some failed")
    return p


def main(arguments: list[str] | None = None, prog: str = "python -m extract") -> int:
    """Run the command; returns its exit status."""
    options = parser(prog).parse_args(arguments)
    began = time.monotonic()
    try:
        manifest = Manifest.load(options.dataset)
        assert manifest.path is not None, "it was loaded"
        data = options.data or manifest.path.parent
        settings = Settings(
            EncoderSpec(
                options.encoder or manifest.card.encoder,
                options.checkpoint,
                options.device,
                options.precision,
                options.backend,
            ),
            sampling=Sampling(
                options.fps,
                options.window,
                options.channel,
                options.vision,
                options.crops,
                options.crop_rows,
            ),
            dtype=options.dtype,
            cluster=ClusterSpec(
                options.workers, options.memory_limit, options.scheduler, options.slurm
            ),
            timeout=options.timeout,
            shares=() if options.no_share else (*options.share, *configured_shares()),
            retry_failed=options.retry_failed,
        )
        if options.dry_run:
            _foretell(dry_run(manifest, data, options.root, settings))
            return 0
        with View(console) as view:
            summary = extract(manifest, data, options.root, settings, view.show, console.print)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}; finished blocks are kept, run the command again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; finished blocks are kept, run the command again", file=sys.stderr)
        return 130
    _print(summary, time.monotonic() - began)
    failed = summary.statuses.get("failed", 0)
    return EXIT_SOME_FAILED if failed and not options.allow_failures else 0


def _print(summary: Summary, seconds: float) -> None:
    if summary.complete:
        console.print("The cache is complete: nothing to decode.")
    elif summary.shared:
        console.print(f"Pulled from {summary.shared}: nothing to decode.", soft_wrap=True)
    elif summary.resumed:
        console.print(f"{summary.resumed} utterances were there from an earlier run.")
    # One below the other: beside each other they do not fit into a log's 80 columns.
    table = Table(show_header=False)
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
        again = "the same command with --retry-failed (make: ARGS=--retry-failed)"
        console.print(f"Once these files are in order: {again}.")
    console.print(f"store: {summary.store}", soft_wrap=True)


def _foretell(estimate: ExtractionEstimate | None) -> None:
    if estimate is None:
        console.print("The cache is complete: there is nothing to do.")
        return
    table = Table("utterances", "video", "blocks", "cache", "workers", "would take")
    took = "unknown: none of a few could be read"
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


if __name__ == "__main__":
    sys.exit(main())
