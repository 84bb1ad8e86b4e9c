"""Three crops of a picture, and tubelets of two images, on videos whose pixels are known."""

import numpy as np
import pytest

from extract.decode import decode
from extract.sampling import Sampling
from tests.test_decode import ffmpeg, numbered, numbers

STRIPES = {"red": (254, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 254)}


@pytest.fixture(params=["hstack", "vstack"])
def stripes(request, tmp_path):
    """Three squares of 336 pixels next to each other, or on top of one another."""
    path = tmp_path / "stripes.mkv"
    sources = ";".join(f"color={name}:s=336x336:d=1[{name}]" for name in STRIPES)
    stack = "".join(f"[{name}]" for name in STRIPES) + f"{request.param}=inputs=3,format=gbrp"
    ffmpeg("-filter_complex", f"{sources};{stack}", "-c:v", "ffv1", path)
    return path


def test_three_crops_run_along_the_longer_side(stripes):
    """The middle crop equals the only crop with ``crops=1``."""
    images = decode(stripes, Sampling(crops=3)).images
    assert images.shape == (2, 3, 224, 224, 3)
    for square, colour in zip(images[1], STRIPES.values(), strict=True):
        assert np.abs(square[8:-8, 8:-8].astype(int) - colour).max() <= 2
    assert np.array_equal(images[:, 1], decode(stripes, Sampling()).images)


def test_crops_of_a_square_are_the_same(tmp_path):
    path = numbered(tmp_path / "clip.mp4", 12, 12)
    crop = (1 / 6, 0.0, 2 / 3, 1.0)  # 32 x 32 of 48 x 32
    images = decode(path, Sampling(crops=3), crop=crop).images
    assert np.array_equal(images[:, 0], images[:, 1])
    assert np.array_equal(images[:, 0], images[:, 2])


@pytest.mark.parametrize("fps", [1.0, 2.0, 4.0, 5.0])
def test_a_tubelet_is_two_images_a_quarter_of_a_second_apart(tmp_path, fps):
    clip = decode(numbered(tmp_path / "clip.mp4", 70, 24), Sampling(fps=fps, vision="tubelet"))
    times = np.arange(clip.frames) / fps
    first, second = clip.images[:, 0], clip.images[:, 1]
    assert clip.images.shape == (clip.frames, 2, 224, 224, 3)
    assert numbers(first).tolist() == [int(t * 24 + 1e-6) for t in times]
    # after the end the first image is used twice
    later = [t + 0.25 if t + 0.25 < 70 / 24 else t for t in times]
    assert numbers(second).tolist() == [int(t * 24 + 1e-6) for t in later]


@pytest.mark.parametrize(("start", "end"), [(0.5, 1.9), (1.0, 1.1), (1.0, 2.2)])
def test_a_tubelet_ends_with_its_utterance(tmp_path, start, end):
    path = numbered(tmp_path / "clip.mp4", 70, 24)
    clip = decode(path, Sampling(vision="tubelet"), start, end)
    times = start + np.arange(clip.frames) / 2
    later = [t + 0.25 if t + 0.25 < end else t for t in times]
    assert numbers(clip.images[:, 1]).tolist() == [int(t * 24 + 1e-6) for t in later]


def test_a_single_frame_is_a_tubelet_of_itself(tmp_path):
    clip = decode(numbered(tmp_path / "one.mp4", 1, 25), Sampling(vision="tubelet"))
    assert clip.images.shape == (1, 2, 224, 224, 3)
    assert np.array_equal(clip.images[0, 0], clip.images[0, 1])


def test_tubelets_of_three_crops(tmp_path):
    path = numbered(tmp_path / "clip.mp4", 48, 24)
    both = decode(path, Sampling(vision="tubelet", crops=3)).images
    assert both.shape == (4, 3, 2, 224, 224, 3)
    assert np.array_equal(both[:, 1], decode(path, Sampling(vision="tubelet")).images)
    assert np.array_equal(both[:, :, 0], decode(path, Sampling(crops=3)).images)


def test_a_recipe_omits_default_sampling_options():
    plain = {"fps": 2.0, "window_s": 2.0, "channel": "mix"}
    assert Sampling().as_dict() == Sampling(crop_rows="mean").as_dict() == plain
    assert Sampling(vision="tubelet").as_dict() == {**plain, "vision": "tubelet"}
    three = {**plain, "crops": 3}
    assert Sampling(crops=3).as_dict() == {**three, "crop_rows": "mean"}
    separate = Sampling(crops=3, crop_rows="separate")
    assert separate.as_dict() == {**three, "crop_rows": "separate"}
