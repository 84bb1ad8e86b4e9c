"""Foreign feature files: import from h5, npz, csv and MMSA, and export to them."""

EXPORT_FORMATS = ("h5", "mmsa", "npz")
IMPORT_FORMATS = ("mmsa", "h5", "npz", "csv")
NON_FINITE = ("refuse", "zero")
"""What an import does with NaN and infinity."""
