"""How this fixture was made, by the code of release 0.1.0 (commit 2c35733) and no later one.

    git worktree add /tmp/old 2c35733
    cd /tmp/old && OMP_NUM_THREADS=1 PYTHONPATH=/tmp/old python .../make.py FOLDER

FOLDER must not exist. Everything runs with it as the working folder, so paths are relative.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from extract.decode import ffmpeg_exe
from manifests import Card, Manifest
from tests.forks import Forks

KEYS = [
    *("dataset=old", "method=audio", "width=16", "dropout=0.2", "optim.lr=3e-3", "train.cpu=true"),
    *("perceiver.layers=1", "perceiver.tokens=2", "perceiver.max_frames=16"),
    *("train.batch_size=2", "train.epochs=8"),
]
SPLITS = ["train"] * 8 + ["valid"] * 3 + ["test"] * 3
LABELS = [-3.0, 2.2, -1.0, 0.6, -2.2, 1.4, 3.0, -0.6, -2.0, 0.2, 2.6, -2.6, 0.4, 2.0]
SILENT, BROKEN = 2, 5


def write_dataset(folder: Path) -> None:
    """Fourteen clips: the louder, the higher the label. One is silent, one is empty."""
    (folder / "videos").mkdir(parents=True)
    table = pd.DataFrame(
        {
            "id": [f"u{i:02d}" for i in range(len(SPLITS))],
            "video": [f"videos/{i:02d}.mp4" for i in range(len(SPLITS))],
            "split": SPLITS,
            "text": [f"this is sentence {i}" for i in range(len(SPLITS))],
            "label": LABELS,
        }
    )
    card = Card(
        name="old",
        title="Made by release 0.1.0",
        task="regression",
        range=[-3, 3],
        encoder="imagebind-tiny",
        preset="",
        licence="CC0",
    )
    Manifest(card, table).save(folder)
    for i, label in enumerate(LABELS):
        path = folder / f"videos/{i:02d}.mp4"
        seconds = 0.8 + 0.2 * (i % 3)
        inputs = ["-f", "lavfi", "-i", f"color=c=0x{15 * i:02x}8060:d={seconds}:r=8:s=32x32"]
        if i != SILENT:
            loud = 10 ** ((label - 3) / 2)
            noise = f"anoisesrc=d={seconds}:r=16000:a={loud:.5f}:c=white:seed={i}"
            inputs += ["-f", "lavfi", "-i", noise, "-c:a", "aac", "-b:a", "32k"]
        codec = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-fflags", "+bitexact"]
        command = [ffmpeg_exe(), "-loglevel", "error", *inputs, *codec, str(path)]
        subprocess.run(command, check=True)
    (folder / f"videos/{BROKEN:02d}.mp4").write_bytes(b"")


def run(*command: str, status: int = 0) -> str:
    """A command of the old code in the working folder; what it printed."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    assert done.returncode == status, (command, done.returncode, done.stdout, done.stderr)
    print(done.stdout)
    return done.stdout


def only(pattern: str) -> Path:
    """The one path that matches."""
    (path,) = Path().glob(pattern)
    return path


def tidy(run_folder: Path) -> None:
    """Take the machine out of what nobody reads."""
    path = run_folder / "environment.json"
    environment = json.loads(path.read_text())
    environment["platform"] = "Linux"
    path.write_text(json.dumps(environment, indent=2, ensure_ascii=False) + "\n")
    for number, log in enumerate(sorted(run_folder.rglob("events.out.tfevents.*"))):
        log.rename(log.with_name(f"events.out.tfevents.{1700000000 + number}.host.1.0"))


def expected_store(path: Path) -> dict:
    """The table of the store, and the first numbers of each row."""
    run("cache", "export", path.as_posix(), "--to", "npz", "store.npz")
    with np.load("store.npz") as file:
        table = {name: file[name].tolist() for name in ("ids", "status", "error", "duration")}
        offsets = {m: file[f"{m}/offsets"].tolist() for m in ("audio", "vision")}
        first = {m: file[f"{m}/values"][:, :4].astype(float).tolist() for m in ("audio", "vision")}
    Path("store.npz").unlink()
    return {"path": path.as_posix(), "table": table, "offsets": offsets, "first": first}


def expected_run(folder: Path) -> dict:
    """What a finished run says."""
    metrics = json.loads((folder / "metrics.json").read_text())
    table = pd.read_parquet(folder / "predictions.parquet")
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return {
        "run": folder.as_posix(),
        "metrics": metrics,
        "predictions": dict(zip(table["id"], table["prediction"].astype(float), strict=True)),
        "model_sha256": weights,
    }


def main(folder: Path) -> None:
    """Make it all."""
    folder.mkdir(parents=True)
    folder = folder.resolve()
    os.chdir(folder)
    os.environ |= {"PYTHONPATH": str(Path(sys.modules["tests.forks"].__file__).parent.parent)}
    os.environ |= {"OMP_NUM_THREADS": "1", "LOGNAME": "somebody", "COLUMNS": "200"}
    write_dataset(Path("data/old"))
    run("extract", "old", "--workers", "1", status=3)  # 3: one of them failed
    store = only("stores/old/*.zarr")
    expected = {"keys": KEYS, "store": expected_store(store)}

    run("train", "fit", *KEYS, "seed=3", "name=finished")
    finished = only("runs/old/audio/*-finished")
    expected["finished"] = expected_run(finished)
    shown = run("train", "evaluate", finished.as_posix(), "--split", "test")
    rows = [line for line in shown.splitlines() if "│" in line]
    expected["finished"]["shown"] = [row.split("│")[1:4] for row in rows]
    run("train", "predict", finished.as_posix(), "data/old/videos", "--json", "said.json", status=3)
    said = json.loads(Path("said.json").read_text())
    Path("said.json").unlink()
    expected["finished"]["said_of_clips"] = {
        clip["video"]: clip["answer"] and clip["answer"]["prediction"] for clip in said["clips"]
    }

    run("train", "fit", *KEYS, "seeds=1,2")
    runs = sorted(Path().glob("runs/old/audio/*-seeds-*"))
    expected["study"] = [path.as_posix() for path in runs]

    forks = Forks(folder)
    command = ["fit", *KEYS, "seed=4", "name=interrupted", "train.save_every=3"]
    ((code, printed),) = forks(command, stop=("AdamW.step", 11, signal.SIGKILL))
    forks.close()
    assert code == -signal.SIGKILL, printed
    interrupted = only("runs/old/audio/*-interrupted")
    assert only(f"{interrupted}/state/*").name == "00003-00000001"
    shutil.copytree(folder, folder.with_name("whole"))
    os.chdir(folder.with_name("whole"))
    run("train", "fit", "--resume", interrupted.as_posix())
    expected["interrupted"] = expected_run(interrupted)
    os.chdir(folder)
    shutil.rmtree(folder.with_name("whole"))

    for path in Path().glob("runs/old/audio/*"):
        tidy(path)
    text = json.dumps(expected, indent=1, ensure_ascii=False)
    Path("expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
