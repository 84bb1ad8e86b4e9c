"""One store on disk: its recipe, parts, assembly, publication, checks and raw rows."""
