"""KEEP and share what was seen: one published Zarr store per (dataset, encoder, sampling).

A store is written once by an extraction and read by every training run::

    from cache import FeatureCache

    features = FeatureCache.open("stores/demo/embedded-2fps-0123456789ab.zarr").select(ids)
    batch = features.batch(torch.tensor([3, 1, 2]))
    x_BTD, mask_BT = batch["audio"].padded()

The layout is plain Zarr version 3: ``zarr.open`` reads it without this package.
"""

from cache.features import Features, Packed
from cache.order import epoch_order
from cache.parts import Parts, Record, newest_per_id
from cache.reader import FeatureCache, find
from cache.recipe import MODALITIES, Recipe
from cache.store import publish

__all__ = [
    "MODALITIES",
    "FeatureCache",
    "Features",
    "Packed",
    "Parts",
    "Recipe",
    "Record",
    "epoch_order",
    "find",
    "newest_per_id",
    "publish",
]
