"""One command for the four stages: ``semanticmac manifests | extract | cache | train``.

The package holds the release's version and the command line; the stages do the work.
"""

__version__ = "0.1.0"
