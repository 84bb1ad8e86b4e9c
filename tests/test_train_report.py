"""The progress bar of a run."""

import io
import re
import time

from rich.console import Console

from train.report import progress


def test_a_resumed_run_shows_the_time_left_after_its_own_first_steps():
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80)
    with progress(console, 1000, 990) as advance:
        for _ in range(3):
            time.sleep(0.3)  # the bar is drawn ten times a second
            advance()
        time.sleep(0.3)
        assert "993/1000" in output.getvalue()
        assert "-:--:--" in output.getvalue()
        assert not re.search(r"\d:\d\d:\d\d", output.getvalue())
        for _ in range(5):
            advance()
        time.sleep(0.8)  # the column is renewed twice a second
        assert re.search(r"998/1000.*0:00:0\d", output.getvalue())
