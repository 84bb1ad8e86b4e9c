"""LEARN from what was kept: a manifest and a feature cache become a trained run.

    python -m train fit dataset=demo
    python -m train evaluate runs/demo/semanticmac/20250101-120000-seed1

The files, in the order in which a run meets them: `config` (every switch), `task` (what is
predicted), `data` (manifest and cache joined into batches), `text` (the language model),
`perceiver`, `sgfi`, `sclg`, `sccl` (the paper's parts) and `semanticmac` (the whole), `method`
(what the loop expects of any method), `metrics`, `record` (a run's folder), `fit` (the loop).
"""
