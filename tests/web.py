"""A real web server for tests."""

import re
import subprocess
import sys
from pathlib import Path


class WebServer:
    """``python -m http.server`` of a folder, on a free port of this machine."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
        self._process = subprocess.Popen(
            [*command, "--directory", str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.url = re.search(r"\((http://[^)]*)/\)", self._process.stdout.readline())[1]

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
