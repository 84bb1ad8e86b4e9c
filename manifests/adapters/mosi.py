"""CMU-MOSI: sentiment of clips from YouTube, as single clips or as the CMU SDK's ``.csd`` files."""

from pathlib import Path

from manifests.adapters import AdapterResult, csd, raw_clips


def build(source: Path, media: bool = True) -> AdapterResult:
    """The table of utterances: from ``label.csv`` if there is one, else from the ``.csd`` files."""
    path = raw_clips.find_table(source)
    if path is not None:
        return raw_clips.read(path)
    return csd.read("mosi", source, ["label"])
