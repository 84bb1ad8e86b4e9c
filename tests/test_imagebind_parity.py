"""The ImageBind encoder against its authors' own modules, with the same seeded random weights.

The modules come from the package ``imagebind-unofficial``, which holds the published source.
"""

import importlib.util
import sys
import types
from dataclasses import replace

import pytest
import torch

from extract import fbank
from extract.encoders import imagebind, imagebind_weights
from extract.encoders.imagebind import TINY
from extract.encoders.imagebind_package import package_module

# heads of 16 and 20 numbers, depths and widths that all differ: nothing fits by chance
CONFIG = replace(TINY, vision_dim=80, vision_layers=3, vision_heads=4, audio_dim=48, audio_heads=3)


@pytest.fixture(scope="module")
def upstream():
    """The published model's module, imported without the dependencies of other modalities."""
    if importlib.util.find_spec("imagebind") is None or importlib.util.find_spec("einops") is None:
        pytest.skip("imagebind-unofficial and einops are not installed (`make test` installs them)")
    placeholders = {
        "timm": {},
        "timm.layers": {
            "DropPath": torch.nn.Identity,  # drops nothing at inference
            "trunc_normal_": torch.nn.init.trunc_normal_,
        },
        "ftfy": {},
        "iopath": {},
        "iopath.common": {},
        "iopath.common.file_io": {"g_pathmgr": None},
    }
    absent = {name for name in ("timm", "ftfy", "iopath") if not importlib.util.find_spec(name)}
    with pytest.MonkeyPatch.context() as patch:
        for name, attributes in placeholders.items():
            if name.partition(".")[0] in absent:
                module = types.ModuleType(name)
                module.__dict__.update(attributes)
                patch.setitem(sys.modules, name, module)
        yield package_module()


@pytest.fixture(scope="module")
def model(upstream):
    """The published model with all six modalities, small and random."""
    torch.manual_seed(11)
    model = upstream.ImageBindModel(
        out_embed_dim=CONFIG.embedding_dim,
        vision_embed_dim=CONFIG.vision_dim,
        vision_num_blocks=CONFIG.vision_layers,
        vision_num_heads=CONFIG.vision_heads,
        audio_embed_dim=CONFIG.audio_dim,
        audio_num_blocks=CONFIG.audio_layers,
        audio_num_heads=CONFIG.audio_heads,
        text_embed_dim=16,
        text_num_heads=1,
        **{f"{other}_num_blocks": 1 for other in ("text", "depth", "thermal", "imu")},
    ).eval()
    with torch.no_grad():
        # biases and norms are initialised to zeros and ones, which would hide a swapped pair
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("imagebind") / "random.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(5)
    return {
        "audio": 0.1 * torch.randn(3, 32000, generator=generator),
        "vision": torch.randint(0, 256, (3, 224, 224, 3), dtype=torch.uint8, generator=generator),
    }


def prepared(inputs):
    """Inputs as the authors' loaders return them: ``[n, 1, 128, 204]``, ``[n, 3, 224, 224]``."""
    # CLIP's constants, written out: an error in ours would not be found if shared
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    return {
        "audio": fbank.spectrogram(inputs["audio"]).transpose(1, 2)[:, None],
        "vision": (inputs["vision"].permute(0, 3, 1, 2) / 255 - mean) / std,
    }


def relative(ours, theirs):
    return ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max().item()


@torch.no_grad()
def head_output(model, modality, values):
    tokens = model.modality_preprocessors[modality](**{modality: values})
    return model.modality_heads[modality](model.modality_trunks[modality](**tokens["trunk"]))


def test_the_layout_is_the_published_model_s(model):
    theirs = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    ours = imagebind_weights.layout(CONFIG)
    assert ours.items() <= theirs.items()
    rest = theirs.keys() - ours.keys()
    assert not [name for name in rest if not imagebind_weights.is_ignored(name)]


@pytest.mark.parametrize("modality", ["audio", "vision"])
def test_every_norm_has_its_epsilon(model, checkpoint, modality):
    """At usual activations a wrong one is below the tolerance of the comparisons."""

    def epsilons(modules):
        norms = [m for module in modules for m in module.modules()]
        return [m.eps for m in norms if isinstance(m, torch.nn.LayerNorm)]

    encoder = imagebind.load(checkpoint, config=CONFIG)
    ours = epsilons([encoder.audio_trunk if modality == "audio" else encoder.vision_trunk])
    parts = ("modality_preprocessors", "modality_trunks", "modality_heads")
    assert ours == epsilons(getattr(model, part)[modality] for part in parts)


@pytest.mark.parametrize("backend", ["transformers", "package"])
@pytest.mark.parametrize("modality", ["audio", "vision"])
def test_equal_before_and_after_the_postprocessor(model, checkpoint, inputs, modality, backend):
    encoder = imagebind.load(checkpoint, backend=backend, config=CONFIG)
    ours = getattr(encoder, modality)(inputs[modality])
    theirs = head_output(model, modality, prepared(inputs)[modality])
    assert relative(ours, theirs) < 1e-5
    with torch.no_grad():
        whole = model(prepared(inputs))[modality]
    assert relative(encoder.postprocess(ours, modality), whole) < 1e-5


def test_pairs_of_frames(model, checkpoint, inputs):
    encoder = imagebind.load(checkpoint, config=CONFIG)
    pairs = torch.stack([inputs["vision"], inputs["vision"].flip(0)], 1)
    first, second = (prepared(inputs | {"vision": pairs[:, i]})["vision"] for i in (0, 1))
    theirs = head_output(model, "vision", torch.stack([first, second], 2))
    assert relative(encoder.vision(pairs), theirs) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("modality", ["audio", "vision"])
def test_mixed_precision(model, checkpoint, inputs, modality, dtype):
    encoder = imagebind.load(checkpoint, dtype=dtype, config=CONFIG)
    ours = getattr(encoder, modality)(inputs[modality])
    full = head_output(model, modality, prepared(inputs)[modality])
    with torch.autocast("cpu", dtype):
        theirs = head_output(model, modality, prepared(inputs)[modality]).float()
    for reference in (full, theirs):
        assert relative(ours, reference) < 2e-2
        assert torch.cosine_similarity(ours, reference).min() > 0.999


def test_the_package_when_it_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "imagebind"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ValueError, match="backend=package needs the package imagebind"):
        package_module()
