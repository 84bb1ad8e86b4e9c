"""Check the paths given to ``predict``, before anything slow is imported."""

from __future__ import annotations

from pathlib import Path

RUN_FILES = ("config.yaml", "card.yaml", "encoder.json", "model.safetensors")


def check_run(folder: Path) -> None:
    """Raise a ValueError unless ``folder`` is the folder of a finished run."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give the folder of a finished run")
    for name in RUN_FILES:
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name}: no such file; give the folder of a finished run")


def check_clips(source: Path, text: str | None) -> None:
    """Raise a ValueError unless ``source`` exists and is one video where ``text`` is given."""
    if text is not None and (source.is_dir() or source.suffix.lower() == ".csv"):
        raise ValueError("--text is the transcript of one video: write several into a CSV")
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
