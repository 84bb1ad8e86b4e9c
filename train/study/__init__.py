"""Several runs: studies, ablations, comparisons, searches and their statistics."""
