"""``python -m extract DATASET``: decode every video once and publish its features.

Only what parsing and checking the arguments needs is imported at the top: PyTorch, Dask and pandas
take seconds, `--help` and a wrong path are answered without them.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from cache.share.configured import SHARES, configured_shares
from cache.store.recipe import DTYPES
from extract.encoders import BACKENDS, NAMES, PRECISIONS, EncoderSpec
from extract.sampling import Sampling
from extract.settings import ClusterSpec, Settings
from manifests.command_line import add_stores_option
from manifests.locate import find_manifest, load_card
from manifests.printing import say

EXIT_SOME_FAILED = 3


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The command-line parser."""
    p = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s DATASET [--data FOLDER] [options]",
        description="Decode every video of a dataset once and publish the features of its frames\n"
        "and sound as a store that training reads. Features that a store has of the same\n"
        "content are copied: added, removed, renamed or replaced videos cost what they\n"
        "are. An interrupted run resumes when the same command is run again.",
        epilog=f"""\
exit status: 0 all utterances extracted, 1 error, 2 wrong usage,
             {EXIT_SOME_FAILED} the store is published but some utterances failed

examples:
  {prog} meld --data /data/MELD.Raw --dry-run
      estimate the time and the store's size; nothing is written
  {prog} meld --data /data/MELD.Raw --device cuda --precision bf16 \\
      --encoder imagebind --checkpoint imagebind_huge.pth
      extract with the paper's encoder, on the GPUs of this machine""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "dataset", metavar="DATASET", help="name of a built manifest (data/NAME) or its folder"
    )
    p.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="folder of the videos (default: the manifest's folder)",
    )
    add_stores_option(p, former="--root")

    features = p.add_argument_group("features", "Each combination of these makes its own store.")
    features.add_argument(
        "--encoder", choices=NAMES, help="frozen encoder (default: the dataset's card)"
    )
    features.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="weights file of the encoder imagebind"
    )
    features.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="of the encoder's matrix products; bf16 and fp16: mixed precision for GPUs (default: "
        "fp32)",
    )
    features.add_argument("--fps", type=float, default=2.0, help="frames per second (default: 2)")
    features.add_argument(
        "--window",
        type=float,
        metavar="SECONDS",
        default=2.0,
        help="audio window around each frame, at most 2.04 with imagebind (default: 2)",
    )
    features.add_argument(
        "--channel",
        choices=["mix", "first"],
        default="mix",
        help="audio: all channels mixed, or only the first one (default: mix)",
    )
    features.add_argument(
        "--vision",
        choices=["image", "tubelet"],
        default="image",
        help="single images, or pairs of images 0.25 s apart (default: image)",
    )
    features.add_argument(
        "--crops",
        type=int,
        choices=[1, 3],
        default=1,
        help="squares per frame: the centre, or three along the longer side (default: 1)",
    )
    features.add_argument(
        "--crop-rows",
        choices=["separate", "mean"],
        default="mean",
        help="with --crops 3: store their mean, or three rows per frame, which training does not "
        "read (default: mean)",
    )
    features.add_argument(
        "--dtype", choices=DTYPES, default="float16", help="stored type (default: float16)"
    )

    machines = p.add_argument_group("where it runs", "The store does not depend on these.")
    machines.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    machines.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes (default: one per core, or one per GPU with --device cuda)",
    )
    machines.add_argument(
        "--memory-limit",
        metavar="SIZE",
        help="of each worker, such as 8GB (default: an equal share of the memory)",
    )
    machines.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="use the workers of a running Dask scheduler, tcp://HOST:PORT",
    )
    machines.add_argument(
        "--slurm",
        type=Path,
        metavar="PROFILE",
        help="run the workers as SLURM jobs (documentation: extraction.md)",
    )
    machines.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        default=600.0,
        help="longest decoding time of a file, in processor time if cores are short (default: 600)",
    )
    machines.add_argument(
        "--backend",
        choices=BACKENDS,
        default="transformers",
        help="implementation of imagebind; package: the modules of its authors (default: "
        "transformers)",
    )

    shares = p.add_argument_group("shares")
    shares.add_argument(
        "--share",
        action="append",
        default=[],
        metavar="URL",
        help="copy what it has of the features from there: a folder, s3://, gs://, http(s)://, "
        f"ssh://, hf://; may be repeated; ${SHARES} names more, separated by commas",
    )
    shares.add_argument("--no-share", action="store_true", help="do not search any share")

    run = p.add_argument_group("what to do")
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="report the number of utterances, the store's size and the time; write nothing",
    )
    run.add_argument(
        "--retry-failed",
        action="store_true",
        help="also those that failed before",
    )
    run.add_argument(
        "--rehash",
        action="store_true",
        help="compare the content of all videos, also of those whose size and times did not change",
    )
    run.add_argument(
        "--allow-failures", action="store_true", help="exit with 0 even if some utterances failed"
    )
    return p


def main(arguments: list[str] | None = None, prog: str = "python -m extract") -> int:
    """Run the command and return its exit status."""
    options = build_parser(prog).parse_args(arguments)
    try:
        manifest_path = find_manifest(options.dataset)
        settings = _settings(options, manifest_path.parent)
        _check_paths(options, settings)
        return _run(options, settings)
    except ValueError as error:
        say(f"error: {error}", error=True)
        return 1
    except OSError as error:
        say(f"error: {error}; finished blocks are kept, run the command again", error=True)
        return 1
    except KeyboardInterrupt:
        say("interrupted; finished blocks are kept, run the command again", error=True)
        return 130


def _settings(options: argparse.Namespace, dataset: Path) -> Settings:
    """The settings that the options ask for; ``dataset`` is the folder of manifest and card."""
    encoder = options.encoder
    if encoder is None:
        encoder = load_card(dataset).encoder
    return Settings(
        EncoderSpec(
            encoder, options.checkpoint, options.device, options.precision, options.backend
        ),
        Sampling(
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
        rehash=options.rehash,
    )


def _check_paths(options: argparse.Namespace, settings: Settings) -> None:
    """Raise a ValueError if a path on the command line does not exist."""
    settings.encoder.check_checkpoint()
    if options.slurm and not options.slurm.is_file():
        raise ValueError(
            f"{options.slurm}: no such file; the documentation's page extraction.md has an example"
        )
    # A store that exists already, here or on a share, is used without the videos.
    may_exist = settings.shares or any(options.stores.glob("*/*.zarr"))
    if options.data and not options.data.is_dir() and not may_exist:
        raise ValueError(
            f"--data {options.data}: no such folder; give the folder of the release (make: "
            "DATA=...)"
        )


def _run(options: argparse.Namespace, settings: Settings) -> int:
    from extract.engine import dry_run, extract
    from extract.progress import ProgressView
    from extract.summary import print_estimate, print_summary
    from manifests import Manifest
    from manifests.console import Console

    console = Console()
    began = time.monotonic()
    manifest = Manifest.load(options.dataset)
    assert manifest.path is not None, "it was loaded"
    data = options.data or manifest.path.parent
    if options.dry_run:
        print_estimate(console, dry_run(manifest, data, options.stores, settings))
        return 0
    with ProgressView(console) as view:
        summary = extract(
            manifest, data, options.stores, settings, view.show, console.print, view.hashing
        )
    print_summary(console, summary, time.monotonic() - began)
    failed = summary.statuses.get("failed", 0)
    return EXIT_SOME_FAILED if failed and not options.allow_failures else 0


if __name__ == "__main__":
    sys.exit(main())
