"""ImageBind by its authors' own modules, where the package ``imagebind`` is installed.

The same checkpoint, the same inputs and outputs as the encoder built of transformers; it is there
to compare with, and needs the package's code, which is licensed CC BY-NC-SA 4.0.
"""

import importlib
import importlib.util
import sys
import types
from typing import Any

from torch import Tensor, nn

from extract.encoders.imagebind_weights import ImageBindConfig, Modality, State


class PackageTrunk(nn.Module):
    """One modality of the package's model, up to its head's output."""

    def __init__(self, model: Any, modality: Modality):
        super().__init__()
        self.modality = modality
        self.preprocessor = model.modality_preprocessors[modality]
        self.trunk = model.modality_trunks[modality]
        self.head = model.modality_heads[modality]

    def forward(self, inputs: Tensor) -> Tensor:
        """Embed spectrograms ``[n, 1, 128, 204]`` or pairs of frames ``[n, 2, 3, 224, 224]``."""
        if self.modality == "vision":
            inputs = inputs.transpose(1, 2)  # there, colours come before frames
        tokens = self.preprocessor(**{self.modality: inputs})
        return self.head(self.trunk(**tokens["trunk"]), **tokens["head"])


def package_trunks(state: State, config: ImageBindConfig) -> tuple[PackageTrunk, PackageTrunk]:
    """Audio and vision of the package's model, filled from a checkpoint's tensors.

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
        # the four other modalities are built as small as can be, and dropped
        text_embed_dim=16,
        text_num_heads=1,
        **{f"{other}_num_blocks": 1 for other in ("text", "depth", "thermal", "imu")},
    )
    _, unexpected = model.load_state_dict(state, strict=False, assign=True)
    if unexpected:
        raise ValueError(f"the installed imagebind package is another model: no {unexpected[0]}")
    return PackageTrunk(model, "audio"), PackageTrunk(model, "vision")


def package_module() -> types.ModuleType:
    """The package's module ``imagebind.models.imagebind_model``.

    The package's own ``__init__`` imports its video readers, which this project has no use for
    and which rarely install together; so the module is imported past it.

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
