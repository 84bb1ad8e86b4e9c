"""Import features from h5, npz, csv and MMSA files, and export stores to them."""

EXPORT_FORMATS = ("h5", "mmsa", "npz")
IMPORT_FORMATS = ("mmsa", "h5", "npz", "csv")
NON_FINITE = ("refuse", "zero")
"""How an import treats NaN and infinity."""
