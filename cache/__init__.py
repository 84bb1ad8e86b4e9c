"""Store and share features: one published Zarr store per (dataset, encoder, sampling).

An extraction writes a store once; every training run reads it::

    from cache import FeatureStore

    features = FeatureStore.open("stores/demo/embedded-2fps-0123456789ab.zarr").select(ids)
    batch = features.batch(torch.tensor([3, 1, 2]))
    x_BTD, mask_BT = batch["audio"].padded()

The layout is plain Zarr version 3: ``zarr.open`` reads it without this package.
"""

from typing import TYPE_CHECKING

from manifests.lazy_imports import lazy_attributes

if TYPE_CHECKING:
    from cache.features import Features, Packed
    from cache.local_stores import find
    from cache.open import open_store
    from cache.reader import FeatureStore
    from cache.store.parts import Parts, Record, best_per_id
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
    "best_per_id",
    "find",
    "open_store",
    "publish",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "MODALITIES": "cache.store.recipe",
        "FeatureStore": "cache.reader",
        "Features": "cache.features",
        "Packed": "cache.features",
        "Parts": "cache.store.parts",
        "Recipe": "cache.store.recipe",
        "Record": "cache.store.parts",
        "find": "cache.local_stores",
        "best_per_id": "cache.store.parts",
        "open_store": "cache.open",
        "publish": "cache.store.publish",
    },
)
