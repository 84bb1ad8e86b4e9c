"""Read CMU-MOSEI, sentiment of YouTube clips, as single clips or the CMU SDK's ``.csd`` files."""

from pathlib import Path

from manifests.adapters import AdapterResult, csd, raw_clips


def build(source: Path, media: bool = True) -> AdapterResult:
    """Read the table of utterances: ``label.csv`` if it exists, else the ``.csd`` files."""
    path = raw_clips.find_table(source)
    if path is not None:
        return raw_clips.read(path)
    return csd.read("mosei", source, ["label"])
