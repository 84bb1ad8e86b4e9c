"""Find ImageBind's checkpoint file, or explain how to obtain it.

PyTorch is not imported here: a missing file is reported at once.
"""

from __future__ import annotations

import os
from pathlib import Path

ENVIRONMENT_VARIABLE = "SEMANTICMAC_IMAGEBIND"
DEFAULT_PATH = Path("~/.cache/semanticmac/imagebind_huge.pth")
HOW_TO_OBTAIN = (
    "Download imagebind_huge.pth (4.5 GB) from the page of Meta's ImageBind repository "
    f"(github.com/facebookresearch/ImageBind) and put it at {DEFAULT_PATH}, or name the file in "
    f"the environment variable {ENVIRONMENT_VARIABLE}. ImageBind's code and weights are licensed "
    "CC BY-NC-SA 4.0: no commercial use."
)


def find_checkpoint(path: str | Path | None = None) -> Path:
    """The checkpoint's path: ``path``, else the environment variable's, else the default.

    Raises:
        ValueError: no such file; the message says how to obtain it.
    """
    file = Path(path or os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_PATH).expanduser()
    if not file.is_file():
        raise ValueError(f"no ImageBind weights at {file}. {HOW_TO_OBTAIN}")
    return file
