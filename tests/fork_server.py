"""``python -m tests.fork_server``: run training commands in forked children, which may be killed.

PyTorch and transformers are imported once, so that children start at once. A request is one line::

    {"commands": [["fit", ...], ...], "stop": ["AdamW.step", 3, 9]}

Each command runs in its own process; several commands are the processes of one run. ``stop`` sends
a child the signal 9 when it is about to do something for the third time. The answer is one line:
the exit status and the output of each child.
"""

import importlib
import json
import os
import socket
import sys
import tempfile
import traceback
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

import train.fit
from train.__main__ import main

# Modules that each child would otherwise import when it first needs them.
for name in ("torch._dynamo", "torch.utils.tensorboard", "pyarrow.parquet", "train.study.study"):
    importlib.import_module(name)

COUNTED = {"AdamW.step": (torch.optim.AdamW, "step"), "fsync": (os, "fsync")}
COUNTED |= {"rename": (Path, "replace"), "predict": (train.fit, "predict")}


def _serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            logs = [Path(folder, str(i)) for i in range(len(request["commands"]))]
            port, children = _free_port(), []
            for rank, (log, arguments) in enumerate(zip(logs, request["commands"], strict=True)):
                child = os.fork()
                if child == 0:
                    if len(logs) > 1:
                        _join(rank, len(logs), port)
                    _run(arguments, log, request["stop"])
                children.append(child)
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            said = [log.read_text(encoding="utf-8") for log in logs]
        print(json.dumps(list(zip(codes, said, strict=True))), flush=True)


def _run(arguments: list[str], log: Path, stop: list[Any] | None) -> None:
    status = 70
    with log.open("w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        if stop is not None:
            _signal_at(*stop)
        try:
            status = main(arguments)
        except SystemExit as end:  # bad usage
            status = int(end.code or 0)
        except BaseException:  # a child must not continue as the parent
            traceback.print_exc()
    os._exit(status)


def _signal_at(what: str, times: int, number: int) -> None:
    place, name = COUNTED[what]
    real, done = getattr(place, name), 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal done
        done += 1
        if done == times:
            os.kill(os.getpid(), number)
        return real(*arguments, **named)

    setattr(place, name, counted)


def _join(rank: int, ranks: int, port: int) -> None:
    """Set the variables that torchrun and ``accelerate launch`` set in each process."""
    both = {"RANK": rank, "WORLD_SIZE": ranks}
    local = {f"LOCAL_{name}": value for name, value in both.items()}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in (both | local | where).items()})


def _free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


if __name__ == "__main__":
    _serve()
