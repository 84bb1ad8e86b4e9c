"""The console of all commands: nothing that a file or a share says controls the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment
from rich.text import Text

from manifests.printing import escape_controls


class Console(rich.console.Console):
    """Rich's console, which prints control characters escaped and markup as it is written.

    A name such as ``[link=...]`` or one with an escape sequence may come from a share or a file of
    others. So markup must be asked for, by ``markup=True`` or a style.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False} | options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a text of a string, of which the width is then known."""
        return super().render_str(escape_controls(text), **options)

    def render(
        self,
        renderable: rich.console.RenderableType,
        options: rich.console.ConsoleOptions | None = None,
    ) -> Iterable[Segment]:
        """Render anything else, such as a text with styles."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(escape_controls(segment.text), segment.style)
