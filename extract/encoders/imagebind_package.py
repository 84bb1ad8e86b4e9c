"""ImageBind computed by its authors' modules, from the installed package ``imagebind``.

It takes the same checkpoint and inputs as the encoder built from transformers and serves to compare
with it. The package's code is licensed CC BY-NC-SA 4.0.
"""

import importlib
import importlib.util
import sys
import types
from typing import Any

from torch import Tensor, nn

from extract.encoders.imagebind_weights import ImageBindConfig, Modality, State


class PackageTrunk(nn.Module):
    """One modality of the package's model, up to the output of its head."""

    def __init__(self, model: Any, modality: Modality):
        super().__init__()
        self.modality = modality
        self.preprocessor = model.modality_preprocessors[modality]
        self.trunk = model.modality_trunks[modality]
        self.head = model.modality_heads[modality]

    def forward(self, inputs: Tensor) -> Tensor:
        """Embed spectrograms ``[n, 1, 128, 204]`` or pairs of frames ``[n, 2, 3, 224, 224]``."""
        if self.modality == "vision":
            inputs = inputs.transpose(1, 2)  # the package expects colours before frames
        tokens = self.preprocessor(**{self.modality: inputs})
        return self.head(self.trunk(**tokens["trunk"]), **tokens["head"])


def package_trunks(state: State, config: ImageBindConfig) -> tuple[PackageTrunk, PackageTrunk]:
    """Build the package's audio and vision trunks from a checkpoint's tensors.

    Raises:
        ValueError: the package, or a module it needs, is not installed.
    """
    model = package_module().ImageBindModel(
        out_embed_dim=config.embedding_dim,
        vision_embed_dim=config.vision_dim,
        vision_num_blocks=config.vision_layers,
        vision_num_heads=config.vision_heads,
        audio_embed_dim=config.audio_dim,
        audio_num_blocks=config.audio_layers,
        audio_num_heads=config.audio_heads,
        # the other four modalities are built as small as possible, and dropped
        text_embed_dim=16,
        text_num_heads=1,
        **{f"{other}_num_blocks": 1 for other in ("text", "depth", "thermal", "imu")},
    )
    _, unexpected = model.load_state_dict(state, strict=False, assign=True)
    if unexpected:
        raise ValueError(
            f"the installed imagebind package has another model: it lacks {unexpected[0]}"
        )
    return PackageTrunk(model, "audio"), PackageTrunk(model, "vision")


def package_module() -> types.ModuleType:
    """Import ``imagebind.models.imagebind_model`` without the package's ``__init__``.

    That ``__init__`` imports video readers which are not needed here and rarely install together.

    Raises:
        ValueError: the package, or a module it needs, is not installed.
    """
    name = "imagebind.models.imagebind_model"
    try:
        if name in sys.modules or "imagebind" in sys.modules:
            return importlib.import_module(name)
        spec = importlib.util.find_spec("imagebind")
        parent = types.ModuleType("imagebind")
        parent.__path__ = list(spec.submodule_search_locations or []) if spec else []
        sys.modules["imagebind"] = parent
        try:
            return importlib.import_module(name)
        finally:
            del sys.modules["imagebind"]  # a later `import imagebind` finds the real one
    except ImportError as error:
        raise ValueError(
            f"backend=package needs the package imagebind and what its models import: {error}"
        ) from error
