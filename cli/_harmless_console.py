"""A console that prints the text of strangers: rich styles it, nothing in it commands the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from restkv_local.control_characters import strip_control


class HarmlessConsole(Console):
    """Leaves control characters out of whatever is printed: notes, tables, bars."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield the segments of a renderable; those by which rich moves the cursor pass."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=strip_control(segment.text))
