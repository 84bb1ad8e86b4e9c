"""The ImageBind encoder: inputs, outputs, and refusal of wrong checkpoints."""

import dataclasses
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from extract.encoders import imagebind, imagebind_weights
from extract.encoders.imagebind import HUGE, TINY, ImageBind

TINY_SHA256 = "20f157c58539155613e10e5708165aca1be741c0c247bbc6e8a39acbd633e572"
STATE = imagebind_weights.seeded(imagebind_weights.layout(TINY), seed=0)


@pytest.fixture(scope="module")
def encoder():
    return imagebind.tiny()


@pytest.fixture
def checkpoint(tmp_path):
    """A complete file as published: six modalities, of which two are read."""
    others = {
        "modality_trunks.text.blocks.0.attn.in_proj_bias": torch.zeros(3),
        "modality_postprocessors.audio.1.log_logit_scale": torch.tensor(20.0).log(),
    }
    path = tmp_path / "tiny.pth"
    torch.save(STATE | others, path)
    return path


def images(n, *pair, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (n, *pair, 224, 224, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def sounds(n, samples=32000, seed=2):
    return 0.1 * torch.randn(n, samples, generator=torch.Generator().manual_seed(seed))


def load(path, **options) -> ImageBind:
    return imagebind.load(path, config=TINY, **options)


def test_the_published_layout_has_every_audio_and_vision_tensor():
    layout = imagebind_weights.layout(HUGE)
    assert len(layout) == 568
    parameters = sum(torch.Size(shape).numel() for shape in layout.values())
    assert parameters == 719_065_088
    assert layout["modality_preprocessors.vision.pos_embedding_helper.pos_embed"] == (1, 257, 1280)
    assert layout["modality_preprocessors.audio.pos_embedding_helper.pos_embed"] == (1, 229, 768)


def test_shapes_types_and_settings(encoder):
    assert encoder.widths == {"audio": 32, "vision": 32}
    for values in (encoder.audio(sounds(2)), encoder.vision(images(3))):
        assert values.dtype == torch.float32
        assert values.shape[1:] == (32,)
        assert values.isfinite().all()
        assert not values.requires_grad
        assert values.std(0).min() > 1e-4  # different inputs, different embeddings
    assert json.loads(json.dumps(encoder.settings)) == encoder.settings
    assert encoder.settings["precision"] == "float32"
    assert encoder.settings["postprocessor"] is False


@pytest.mark.parametrize("samples", [400, 8000, 16000, 32000, 56000])
def test_any_window_length(encoder, samples):
    assert encoder.audio(sounds(1, samples)).shape == (1, 32)


def test_a_single_image_is_a_pair_of_equal_frames(encoder):
    still = images(2)
    pair = torch.stack([still, still], 1)
    assert torch.equal(encoder.vision(still), encoder.vision(pair))
    assert not torch.equal(encoder.vision(still), encoder.vision(images(2, 2)))


def test_frames_of_a_pair_keep_their_order(encoder):
    pair = images(1, 2)
    assert not torch.allclose(encoder.vision(pair), encoder.vision(pair.flip(1)), atol=1e-4)


def test_rows_do_not_depend_on_their_neighbours(encoder):
    still, sound = images(5), sounds(5)
    torch.testing.assert_close(encoder.vision(still)[3:4], encoder.vision(still[3:4]))
    torch.testing.assert_close(
        encoder.audio(sound)[3:4], encoder.audio(sound[3:4]), atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(1, 224, 224, 3),
        torch.zeros(1, 3, 224, 224, dtype=torch.uint8),
        torch.zeros(1, 3, 224, 224, 3, dtype=torch.uint8),
        torch.zeros(224, 224, 3, dtype=torch.uint8),
    ],
)
def test_other_images_are_refused(encoder, wrong):
    with pytest.raises(ValueError, match="takes uint8 images"):
        encoder.vision(wrong)


def test_the_learned_key_and_value_count_without_gradients_too(encoder):
    """PyTorch's fused path for inference would silently ignore them."""
    spectrograms = torch.randn(1, 1, 128, 204, generator=torch.Generator().manual_seed(3))
    trunk = encoder.audio_trunk
    with torch.inference_mode():
        fused_or_not = trunk(spectrograms)
    torch.testing.assert_close(fused_or_not, trunk(spectrograms.requires_grad_()).detach())
    without = imagebind_weights.seeded(imagebind_weights.layout(TINY), seed=0)
    for name in without:
        if name.endswith(("bias_k", "bias_v")):
            without[name] = torch.zeros_like(without[name])
    other, _ = imagebind.assemble_trunks(without, TINY)
    assert not torch.allclose(other.eval()(spectrograms), fused_or_not, atol=1e-3)


def test_encoding_restores_global_settings(encoder):
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn.allow_tf32
    encoder.audio(sounds(1))
    assert before == (torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn.allow_tf32)
    assert torch.is_grad_enabled()


def test_tiny_is_the_same_everywhere(encoder):
    assert encoder.weights_sha256 == imagebind.tiny().weights_sha256
    assert encoder.weights_sha256 != imagebind.tiny(seed=1).weights_sha256
    assert encoder.weights_sha256 == TINY_SHA256


@pytest.mark.parametrize("modality", ["audio", "vision"])
def test_postprocess_normalises(encoder, modality):
    values = encoder.audio(sounds(4)) if modality == "audio" else encoder.vision(images(4))
    normalised = encoder.postprocess(values.half(), modality)
    assert normalised.dtype == torch.float32
    expected = torch.full((4,), 20.0 if modality == "audio" else 1.0)
    torch.testing.assert_close(normalised.norm(dim=-1), expected)


def test_load_reads_what_it_needs(encoder, checkpoint):
    loaded = load(checkpoint)
    assert torch.equal(loaded.audio(sounds(2)), encoder.audio(sounds(2)))
    assert torch.equal(loaded.vision(images(2)), encoder.vision(images(2)))
    assert len(loaded.weights_sha256) == 64


def test_safetensors_half_precision_and_old_files_hold_the_same(encoder, tmp_path):
    save_file(STATE, tmp_path / "tiny.safetensors")
    loaded = load(tmp_path / "tiny.safetensors")
    assert torch.equal(loaded.vision(images(2)), encoder.vision(images(2)))
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(load(tmp_path / "old.pth").audio(sounds(2)), encoder.audio(sounds(2)))
    torch.save({name: tensor.half() for name, tensor in STATE.items()}, tmp_path / "half.pth")
    half = load(tmp_path / "half.pth").vision(images(2))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, encoder.vision(images(2)), atol=1e-2, rtol=1e-2)


def test_the_digest_depends_on_the_file_not_on_its_path(checkpoint, tmp_path):
    moved = tmp_path / "elsewhere.pth"
    moved.write_bytes(checkpoint.read_bytes())
    first, second = load(checkpoint), load(moved)
    assert first.weights_sha256 == second.weights_sha256
    assert first.settings == second.settings
    moved.write_bytes(b"")
    os.utime(moved, ns=(0, 0))
    assert imagebind_weights.sha256(moved) != first.weights_sha256


def broken(tmp_path, change):
    state = dict(STATE)
    change(state)
    torch.save(state, tmp_path / "broken.pth")
    return tmp_path / "broken.pth"


def test_missing_unexpected_and_misshaped_names_are_listed(tmp_path):
    def change(state):
        del state["modality_heads.audio.2.weight"]
        state["modality_heads.vision.2.weight"] = torch.zeros(7, 64)
        state["modality_trunks.vision.blocks.4.norm_1.bias"] = torch.zeros(64)
        state["modality_trunks.audio.blocks.0.norm_1.bias"] = "not a tensor"

    with pytest.raises(ValueError, match="not the ImageBind checkpoint") as caught:
        load(broken(tmp_path, change))
    message = str(caught.value)
    assert "missing: modality_heads.audio.2.weight\n" in message
    assert "unexpected: modality_trunks.vision.blocks.4.norm_1.bias\n" in message
    assert "modality_heads.vision.2.weight [7, 64] instead of [32, 64]" in message
    assert "blocks.0.norm_1.bias str instead of [64]" in message


def test_the_list_of_faults_is_bounded(checkpoint):
    with pytest.raises(ValueError, match="and 468 more") as caught:
        imagebind.load(checkpoint)  # the published sizes against a tiny file
    assert len(str(caught.value)) < 4000


def test_a_state_dict_of_something_else_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(ValueError, match=r"missing: .* more\n  unexpected: weight, bias"):
        load(tmp_path / "linear.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list"):
        load(tmp_path / "list.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused_by_name(checkpoint, tmp_path, suffix, share):
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".pth":
        whole = checkpoint
    else:
        save_file(STATE, whole)
    content = whole.read_bytes()
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=f"cut{suffix} .*(truncated|damaged)"):
        load(cut)


class ExternalFeatures:
    def __reduce__(self):
        return (os.mkdir, (os.environ["FOREIGN"],))


@pytest.mark.parametrize("content", [b"no checkpoint\n", b"\x80\x02X", b"\0" * 99, b"PK\x03\x04"])
def test_a_file_of_another_kind_is_refused_without_pytorchs_advice(tmp_path, content):
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.pth .* is not a checkpoint") as refusal:
        load(path)
    assert "weights_only" not in str(refusal.value)


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_that_would_run_code_is_refused_unread(tmp_path, monkeypatch, archive):
    monkeypatch.setenv("FOREIGN", str(tmp_path / "made"))
    path = tmp_path / "foreign.pth"
    if archive:
        torch.save(STATE | {"extra": ExternalFeatures()}, path)
    else:
        path.write_bytes(pickle.dumps(ExternalFeatures(), protocol=2))
    with pytest.raises(ValueError, match=r"foreign\.pth .*refused"):
        load(path)
    assert not (tmp_path / "made").exists()


def test_where_the_checkpoint_is_searched(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SEMANTICMAC_IMAGEBIND", raising=False)
    with pytest.raises(ValueError, match="CC BY-NC-SA") as caught:
        imagebind.load()
    assert str(tmp_path / ".cache/semanticmac/imagebind_huge.pth") in str(caught.value)
    monkeypatch.setenv("SEMANTICMAC_IMAGEBIND", str(checkpoint))
    assert load(None).name == "imagebind-tiny"
    with pytest.raises(ValueError, match=r"no ImageBind weights at .*nowhere"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_close_and_part_of_the_settings(checkpoint, encoder, dtype):
    mixed = load(checkpoint, dtype=dtype)
    assert mixed.settings["precision"] == str(dtype).removeprefix("torch.")
    assert mixed.settings | {"precision": "float32"} == encoder.settings
    for half, full in (
        (mixed.audio(sounds(2)), encoder.audio(sounds(2))),
        (mixed.vision(images(2)), encoder.vision(images(2))),
    ):
        assert half.dtype == torch.float32
        assert torch.cosine_similarity(half, full).min() > 0.999


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same(encoder):
    gpu = imagebind.tiny("cuda")
    for there, here in (
        (gpu.audio(sounds(4)), encoder.audio(sounds(4))),
        (gpu.vision(images(4)), encoder.vision(images(4))),
    ):
        torch.testing.assert_close(there.cpu(), here, atol=1e-4, rtol=1e-4)


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        HUGE.vision_dim = 1
