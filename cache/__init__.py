"""KEEP and share what was seen: one published Zarr store per (dataset, encoder, sampling).

A store is written once by an extraction and read by every training run::

    from cache import FeatureStore

    features = FeatureStore.open("stores/demo/embedded-2fps-0123456789ab.zarr").select(ids)
    batch = features.batch(torch.tensor([3, 1, 2]))
    x_BTD, mask_BT = batch["audio"].padded()

The layout is plain Zarr version 3: ``zarr.open`` reads it without this package.
"""

from cache.features import Features, Packed
from cache.open import open_store
from cache.reader import FeatureStore, find
from cache.store.parts import Parts, Record, newest_per_id
from cache.store.publish import publish
from cache.store.recipe import MODALITIES, Recipe

__all__ = [
    "MODALITIES",
    "FeatureStore",
    "Features",
    "Packed",
    "Parts",
    "Recipe",
    "Record",
    "find",
    "newest_per_id",
    "open_store",
    "publish",
]
