"""Shares named in the environment; a command line reads them without heavy imports."""

import os

SHARES = "SEMANTICMAC_SHARES"


def configured_shares() -> list[str]:
    """The shares in the environment variable ``SEMANTICMAC_SHARES``, separated by commas."""
    return [text.strip() for text in os.environ.get(SHARES, "").split(",") if text.strip()]
