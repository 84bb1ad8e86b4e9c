"""SLURM jobs: their script, and stand-ins for sbatch and scancel that run it here."""

import ast
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from extract import ClusterSpec, EncoderSpec, Settings, extract
from extract.cluster import slurm_cluster
from manifests import Manifest
from tests.stores import tree_of
from tests.test_extract import write_clips

# Not imported here: that would replace the handler of Ctrl-C of all tests in this process.
pytestmark = pytest.mark.skipif(
    find_spec("dask_jobqueue") is None, reason="the extra slurm is not installed"
)

# A job is the process group of its script; the job id is the group id.
SBATCH = """#!/bin/sh
for script; do :; done
cp "$script" "{folder}/job.$$"
setsid sh "{folder}/job.$$" > "{folder}/log.$$" 2>&1 < /dev/null &
echo $! >> "{folder}/jobs"
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
for job; do kill -- "-$job" 2> /dev/null; done
exit 0
"""
PROFILE = "cores: 2\nmemory: 2GB\nprocesses: 1\ninterface: lo\nwalltime: '00:10:00'\n"


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """The folder of the jobs; its file ``jobs`` lists them in order of submission."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, program in (("sbatch", SBATCH.format(folder=folder)), ("scancel", SCANCEL)):
        (folder / name).write_text(program)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    (folder / "profile.yaml").write_text(PROFILE)
    return folder


def jobs(slurm: Path) -> list[int]:
    try:
        return [int(line) for line in (slurm / "jobs").read_text().split()]
    except FileNotFoundError:
        return []


def test_a_job_that_ends_is_replaced(slurm, tmp_path):
    """The next job extracts the blocks of one that ended, for example at its wall time."""
    manifest = Manifest.load(write_clips(tmp_path, [1.0, 2.0, 3.0, 4.0]))

    def end_the_first() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if jobs(slurm) and (working := decoding(jobs(slurm)[0])):
                os.killpg(os.getpgid(working.pid), 15)
                return
            time.sleep(0.005)

    ending = threading.Thread(target=end_the_first)
    ending.start()
    settings = Settings(
        EncoderSpec("imagebind-tiny"), cluster=ClusterSpec(1, slurm=slurm / "profile.yaml")
    )
    store = extract(manifest, tmp_path, tmp_path / "stores", settings).store
    ending.join()
    assert len(jobs(slurm)) >= 2
    undisturbed = extract(
        manifest, tmp_path, tmp_path / "others", Settings(EncoderSpec("imagebind-tiny"))
    )
    assert tree_of(store) == tree_of(undisturbed.store)


def decoding(job: int) -> psutil.Process | None:
    """An ffmpeg process of a job."""
    try:
        found = psutil.Process(job).children(recursive=True)
        return next((process for process in found if "ffmpeg" in process.name()), None)
    except psutil.NoSuchProcess:
        return None


def test_slurm_profile_becomes_a_job_script():
    page = (Path(__file__).parent.parent / "docs/extraction.md").read_text(encoding="utf-8")
    profile = page.partition("```yaml\n")[2].partition("```")[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "slurm.yaml")
        path.write_text(profile)
        with slurm_cluster(path) as cluster:
            script = cluster.job_script()
        path.write_text("queue: gpu\nflavour: mild\n")
        with pytest.raises(ValueError, match=r"page extraction\.md"):
            slurm_cluster(path)
    for line in ("#SBATCH -p gpu", "#SBATCH --gres=gpu:1", "--nthreads 8", "dask_worker"):
        assert line in script


def test_a_job_script_sets_the_memory_settings(tmp_path):
    """The job script sets them: the configuration file on its machine may differ."""
    path = tmp_path / "slurm.yaml"
    path.write_text("cores: 1\nmemory: 1GB\njob_script_prologue: [module load ffmpeg]\n")
    with slurm_cluster(path) as cluster:
        script = cluster.job_script()
    exports = re.findall(r"^export (DASK_\S+)=(\S+)$", script, re.M)
    printed = subprocess.run(
        [sys.executable, "-c", "import dask; print(dask.config.get('distributed.worker.memory'))"],
        env={**os.environ, **dict(exports)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    memory = ast.literal_eval(printed)
    assert (memory["target"], memory["spill"], memory["pause"]) == (False, False, False)
    assert memory["terminate"] == 0.95
    assert script.index("module load ffmpeg") < script.index("export DASK")


def test_importing_dask_jobqueue_keeps_the_handler_of_ctrl_c(tmp_path):
    """In a new process, since the import happens once."""
    (tmp_path / "profile.yaml").write_text(PROFILE)
    code = (
        "import signal, sys; from pathlib import Path; from extract.cluster import slurm_cluster;"
        "slurm_cluster(Path(sys.argv[1])).close();"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "profile.yaml")], check=True)
