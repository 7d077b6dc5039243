"""A generation on the terminal: accepted tokens in their drafter's colour, the target's own plain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specserve.types import Chunk, Event, Finished, Origin

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = ("green", "cyan", "magenta", "yellow", "blue")


class Painter:
    """Paints events as they come. Without a terminal the plain text is written, so that it can be piped."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console

        self._console = console or Console(highlight=False)
        self._style_of: dict[str, str] = {}
        self.finished: Finished | None = None

    def show(self, event: Event) -> None:
        from rich.text import Text

        if isinstance(event, Finished):
            self.finished = event
        if not isinstance(event, Chunk) or not event.text:
            return
        start = 0
        text = Text(event.text)
        for token in event.tokens:
            if token.origin is Origin.ACCEPTED:
                text.stylize(self._style(token.drafter), start, token.text_end)
            start = token.text_end
        self._console.print(text, end="", soft_wrap=True)

    def close(self) -> None:
        """End the line, then say what it took."""
        self._console.print()
        if self.finished is None:
            return
        usage = self.finished.usage
        parts = [f"{usage.emitted_tokens} tokens in {usage.rounds} rounds"]
        for name, drafter in usage.drafters.items():
            parts.append(f"[{self._style(name)}]{name}[/]: {drafter.accepted} of {drafter.drafted} accepted")
        self._console.print("[dim]" + " · ".join(parts) + "[/dim]")

    def _style(self, drafter: str) -> str:
        return self._style_of.setdefault(drafter, _STYLES[len(self._style_of) % len(_STYLES)])
