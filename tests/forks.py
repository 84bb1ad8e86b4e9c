"""Run training commands in processes that start fast and may be killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


class Forks:
    """A fork server, `tests.fork_server`, that runs commands in a folder.

    It imports PyTorch and transformers; this module does not.
    """

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.fork_server"]
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
        return [(status, output) for status, output in json.loads(self._program.stdout.readline())]

    def close(self) -> None:
        self._program.communicate()
