"""Who makes and pushes stores: the name in their attributes, claims and catalogue entries."""

import getpass
import os


def user_name() -> str:
    """The user's name; their number where the system knows no name, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the former up to Python 3.12
        return str(os.getuid())
