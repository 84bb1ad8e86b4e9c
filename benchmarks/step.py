"""Compare a training step of SemanticMAC with one of the same language model alone.

Both take the same batches through forward, loss, backward and optimiser, in turns; "alone" is the
language model, the mean over its tokens and one linear head. The language models have random
weights in the published sizes: nothing is downloaded. The results are tables of the times and of
the shares of a step.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from benchmarks import isolated, report
from benchmarks.command_line import benchmark_parser
from benchmarks.training import BATCH, FRAMES, TOKENS, compare

# Per size: the language models and model widths; the ratios are those of the first width.
SIZES = {
    "tiny": (("tiny",), (16,)),
    "small": (("minilm", "bert_base"), (128,)),
    "full": (("minilm", "bert_base"), (128, 256, 768)),
}
AIMS = {"minilm_vs_lm": 1.4, "bert_base_vs_lm": 1.08, "data_wait_share": 0.01}

console = Console(stderr=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    sizes = (
        "tiny: a smoke test; small: the default width, some minutes; full: widths 128, 256 and "
        "768, a quarter of an hour"
    )
    parser = benchmark_parser("step", __doc__, SIZES, sizes)
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads (default: 1)")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default: the GPU if there is one",
    )
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), help="default: fp32, and bf16 if the device has it"
    )
    options = parser.parse_args(arguments)
    isolated.prepare(("benchmarks.training",))
    models, widths = SIZES[options.size]
    kinds = [options.precision] if options.precision else precisions(options.device)
    turns = [(m, p, w) for m in models for p in kinds for w in widths]
    rows = []
    for model, precision, width in track(
        turns, "steps", console=console, disable=not console.is_terminal
    ):
        with tempfile.TemporaryDirectory(prefix="bench-step-") as folder:
            given = (Path(folder), model, width, precision)
            timed, _ = isolated.run_isolated(
                compare, *given, options.device, options.threads, options.runs
            )
        rows.append({"model": model, "width": width, "precision": precision, **timed})
    ratios = ratios_of(rows, widths[0])
    text = f"{_costs(rows)}\n\n{_shares(rows)}\n\n{_aims(ratios)}\n"
    report.write(options.out, "step", ratios, rows, options.threads, text)
    print(f"batches of {BATCH}, {TOKENS} tokens and {FRAMES} frames each, {options.device}\n")
    print(text)
    return 0


def precisions(device: str) -> list[str]:
    """Return float32, and bfloat16 if the device has it and does not emulate it."""
    has_it = (
        torch.cuda.is_bf16_supported()
        if device == "cuda"
        else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return ["fp32", "bf16"] if has_it else ["fp32"]


def ratios_of(rows: list[dict[str, Any]], width: int) -> dict[str, float]:
    """Return the ratios of the step to the language model alone, and the longest wait for data.

    Names have width and precision as a suffix, except for the default width in float32.
    """
    ratios = {}
    for row in rows:
        usual = row["width"] == width and row["precision"] == rows[0]["precision"]
        rest = "" if usual else f"_width{row['width']}_{row['precision']}"
        ratios[f"{row['model']}_vs_lm{rest}"] = row["vs_lm"]
    return ratios | {"data_wait_share": max(row["data_wait_share"] for row in rows)}


def _costs(rows: list[dict[str, Any]]) -> str:
    headings = ["Language model", "precision", "width", "alone ms", "step ms", "ratio", "data wait"]
    cells = [
        [
            row["model"],
            row["precision"],
            str(row["width"]),
            report.number(1e3 * row["alone_s"]),
            report.number(1e3 * row["step_s"]),
            report.number(row["vs_lm"]),
            f"{report.number(100 * row['data_wait_share'], 2)} %",
        ]
        for row in rows
    ]
    return report.markdown(headings, cells)


def _shares(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0]["parts_s"])
    cells = [
        [
            f"{row['model']}, {row['precision']}, width {row['width']}",
            *(f"{100 * row['parts_s'][name] / row['step_s']:.1f} %" for name in names),
        ]
        for row in rows
    ]
    return report.markdown(["Share of the step", *names], cells)


def _aims(ratios: dict[str, float]) -> str:
    cells = [
        [f"`{name}`", report.number(value), report.number(AIMS[name]) if name in AIMS else ""]
        for name, value in ratios.items()
    ]
    return report.markdown(["Ratio", "measured", "aim: at most"], cells)


if __name__ == "__main__":
    sys.exit(main())
