"""LEARN from what was kept: a manifest and a feature cache become a trained run.

    python -m train fit dataset=demo
    python -m train evaluate runs/demo/semanticmac/20250101-120000-seed1

The files, in the order in which a run meets them: `config` (every switch), `task` (what is
predicted), `data` (manifest and cache joined into batches, with `context`), `text` and
`text_features` (what reads the words), `perceiver`, `sgfi`, `sclg` with `neighbours`, `sccl` (the
paper's parts; `sequences` and `predictor` are those of the other methods), `method` (what the loop
expects of any method) and `methods/` (one file each), `optimiser`, `processes`, `state`, `watch`,
`metrics`, `record` (a run's folder), `report`, and `fit` (the loop).

What is done with finished runs: `predict` a new clip (`trained_model`, `clips`), `compare` two of
them (`predictions`, `run_commands`), and several in one table: `study`, with `ablations`,
`compare_methods`, `search` and `tables`; `labels` says what generated labels are worth.
"""
