"""Foreign feature files: import from h5, npz, csv and MMSA, and export to them."""
