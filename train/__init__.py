"""Train: load a dataset's features, fit a model on them and evaluate it.

    python -m train fit dataset=demo
    python -m train evaluate runs/demo/semanticmac/20250101-120000-seed1

The modules, in the order in which a run uses them: `config` (every key), `task` (the target),
`data` (manifest and store joined into batches, with `context`), `methods` (one file per method,
with the interface in `method`), `model` (the paper's modules, and the layers and frame operations
that all methods share), `optimizer`, `distributed`, `checkpoint`, `loss_meter`, `metrics`,
`run_folder`, `report`, and `fit` (the training loop).

`study` trains and compares several runs; `predict` applies a finished run to new clips.
"""
