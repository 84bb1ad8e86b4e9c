"""The command line: quick answers to wrong arguments, help with examples, renamed options."""

import os
import subprocess
import sys

import pytest

from extract.__main__ import main
from tests.test_extract import write_clip, write_manifest

HEAVY = {"torch", "dask", "distributed", "transformers", "zarr", "pandas", "numpy", "fsspec"}
PROGRAM = """
import sys
from extract.__main__ import main
try:
    status = main(sys.argv[1:])
except SystemExit as error:
    status = error.code
print(status, *sys.modules)
"""


@pytest.fixture
def dataset(tmp_path):
    """A dataset's folder with one clip."""
    (tmp_path / "toy").mkdir()
    write_clip(tmp_path / "toy/0.mp4", 0.5)
    write_manifest(tmp_path / "toy", {"u0": "0.mp4"})
    return tmp_path / "toy"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--help"], 0, "examples:"),
        (["no-such-dataset"], 1, "data/no-such-dataset/manifest.parquet: no such file"),
        (["toy/", "--crops", "2"], 2, "--crops: invalid choice"),
        (["toy/", "--fps", "0"], 1, "fps is 0.0"),
        (["toy/", "--workers", "0"], 1, "--workers is 0"),
        (["toy/", "--data", "gone"], 1, "--data gone: no such folder"),
        (["toy/", "--slurm", "gone.yaml"], 1, "gone.yaml: no such file"),
        (["toy/", "--encoder", "embedded", "--precision", "bf16"], 1, "computes in fp32"),
        (["toy/", "--encoder", "imagebind", "--checkpoint", "w.pth"], 1, "no ImageBind weights at"),
    ],
)
def test_wrong_arguments_are_reported_before_heavy_imports(dataset, arguments, status, message):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=dataset.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    *shown, last = ended.stdout.splitlines()
    returned, *modules = last.split()
    assert int(returned) == status
    assert message in "\n".join([*shown, ended.stderr])
    assert not HEAVY & set(modules)


def test_the_old_name_of_an_option_still_works(dataset, tmp_path, capsys):
    assert main([str(dataset), "--root", str(tmp_path / "old"), "--workers", "1"]) == 0
    assert "note: --root is now called --stores" in capsys.readouterr().err
    assert len(list((tmp_path / "old/toy").glob("*.zarr"))) == 1
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--root" not in capsys.readouterr().out


def test_a_complete_store_needs_no_videos(dataset, tmp_path, capsys):
    command = [str(dataset), "--stores", str(tmp_path / "stores"), "--workers", "1"]
    assert main(command) == 0
    assert main([*command, "--data", str(tmp_path / "gone")]) == 0
    assert "nothing to decode" in capsys.readouterr().out
