"""``python -m tests.forks``: runs training commands in forked children, which may be killed.

PyTorch and transformers are loaded once and each child starts in no time. One request a line::

    {"commands": [["fit", ...], ...], "stop": ["AdamW.step", 3, 9]}

Each command is a process of its own, all of one run where there are several. ``stop`` sends a child
the signal 9 when it is about to do something for the third time. The answer, one line again: the
exit status and what was printed, of each child.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimiser of a process would load it, the first log the next
import torch.utils.tensorboard

import train.fit
from train.__main__ import main

ROOT = Path(__file__).parent.parent
COUNTED = {"AdamW.step": (torch.optim.AdamW, "step"), "fsync": (os, "fsync")}
COUNTED |= {"rename": (Path, "replace"), "predict": (train.fit, "predict")}


class Forks:
    """The program above, asked from a test; start it in the folder that the commands work in."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.forks"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._program = subprocess.Popen(command, cwd=folder, env=environment, **pipes)

    def __call__(
        self, *commands: list[str], stop: tuple[str, int, int] | None = None
    ) -> list[tuple[int, str]]:
        """Exit status (minus the number of a deadly signal) and output of each command."""
        assert self._program.stdin
        assert self._program.stdout
        print(
            json.dumps({"commands": commands, "stop": stop}), file=self._program.stdin, flush=True
        )
        return [(status, said) for status, said in json.loads(self._program.stdout.readline())]

    def close(self) -> None:
        self._program.communicate()


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
        except BaseException:  # a child must not go on as its parent
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
    """What torchrun and ``accelerate launch`` tell each process."""
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
