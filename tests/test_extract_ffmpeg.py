"""The choice of ffmpeg: the bundled one or a named one, never one that is too old."""

import os
from pathlib import Path

import imageio_ffmpeg
import pytest

from extract.__main__ import main
from extract.decode import DecodeError, decode
from extract.ffmpeg import ffmpeg_exe, ffmpeg_version
from extract.sampling import Sampling
from tests.test_extract import write_clip, write_manifest


def write_ffmpeg(folder: Path, output: str, status: int = 0, then: str = ":") -> Path:
    """Write a program named ffmpeg that prints a version; with other arguments it runs ``then``."""
    path = folder / "ffmpeg"
    more = f'[ "$1" = -version ] || {then}'
    path.write_text(f"#!/bin/sh\n{more}\necho '{output}'\nexit {status}\n")
    path.chmod(0o755)
    ffmpeg_exe.cache_clear()
    return path


@pytest.fixture(autouse=True)
def clear_cached_path(monkeypatch):
    """Clear the cached path before and after each test."""
    monkeypatch.delenv("SEMANTICMAC_FFMPEG", raising=False)
    ffmpeg_exe.cache_clear()
    yield
    ffmpeg_exe.cache_clear()


def test_path_is_not_searched(tmp_path, monkeypatch):
    write_ffmpeg(tmp_path, "ffmpeg version 4.4.2-0ubuntu0.22.04.1 Copyright (c) the developers")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert ffmpeg_exe() == imageio_ffmpeg.get_ffmpeg_exe()


@pytest.mark.parametrize("version", ["5.1", "n6.1.1", "7.0.2-static", "10.0", "N-117000-g1234abcd"])
def test_the_environment_variable_names_another_ffmpeg(tmp_path, monkeypatch, version):
    path = write_ffmpeg(tmp_path, f"ffmpeg version {version} Copyright (c) the developers")
    monkeypatch.setenv("SEMANTICMAC_FFMPEG", str(path))
    assert (ffmpeg_exe(), ffmpeg_version()) == (str(path), version)


@pytest.mark.parametrize(
    ("output", "status", "message"),
    [
        ("ffmpeg version 4.4.2-0ubuntu0.22.04.1 Copyright", 0, "is ffmpeg 4.4.2.* 5.1 or later"),
        ("ffmpeg version n5.0.1 Copyright", 0, "is ffmpeg n5.0.1"),
        ("avconv version 12", 0, "is not ffmpeg"),
        ("", 1, "cannot be run"),
    ],
)
def test_an_unsuitable_ffmpeg_is_refused_by_name(tmp_path, monkeypatch, output, status, message):
    path = write_ffmpeg(tmp_path, output, status)
    monkeypatch.setenv("SEMANTICMAC_FFMPEG", str(path))
    with pytest.raises(ValueError, match=message) as refusal:
        ffmpeg_exe()
    assert str(path) in str(refusal.value)
    assert "$SEMANTICMAC_FFMPEG" in str(refusal.value)


def test_a_missing_ffmpeg_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    write_clip(tmp_path / "0.mp4", 0.5)
    ffmpeg_exe.cache_clear()
    write_manifest(tmp_path, {f"u{i}": "0.mp4" for i in range(3)})
    monkeypatch.setenv("SEMANTICMAC_FFMPEG", str(tmp_path / "gone"))
    assert main([str(tmp_path), "--stores", str(tmp_path / "stores"), "--workers", "1"]) == 1
    assert f"{tmp_path / 'gone'} cannot be run" in capsys.readouterr().err
    assert not (tmp_path / "stores").exists()


@pytest.mark.parametrize(
    ("name", "reason"), [("KILL", "killed, perhaps for want of memory"), ("SEGV", "crashed")]
)
def test_a_signal_is_the_reason_of_a_failure(tmp_path, monkeypatch, name, reason):
    write_clip(tmp_path / "0.mp4", 0.5)
    path = write_ffmpeg(tmp_path, "ffmpeg version 8.0", then=f"kill -{name} $$")
    monkeypatch.setenv("SEMANTICMAC_FFMPEG", str(path))
    with pytest.raises(DecodeError, match=reason):
        decode(tmp_path / "0.mp4", Sampling())
