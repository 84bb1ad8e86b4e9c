"""Studies of several runs: ablations, comparisons, random search, and their statistics."""
