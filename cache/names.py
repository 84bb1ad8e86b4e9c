"""Recognise how a store is named: by the path of its folder, by URL, or as ``LOCATION/DIGEST``."""

from __future__ import annotations

import re
from pathlib import Path


def is_url(path_or_url: str | Path) -> bool:
    """Whether this is a URL rather than a path."""
    return "://" in str(path_or_url)


def is_digest(name: str) -> bool:
    """Whether a name can be the start of a store's digest: 12 to 64 hex digits."""
    return re.fullmatch("[0-9a-f]{12,64}", name) is not None
