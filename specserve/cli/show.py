"""A generation on the terminal: accepted tokens in their drafter's colour, the target's own plain."""

from __future__ import annotations

from specserve.types import Chunk, Event, Finished, Origin

_STYLES = ("green", "cyan", "magenta", "yellow", "blue")


class Painter:
    """Paints events as they come. Text is coloured by chunk: a chunk's accepted share comes first.

    Colour needs a terminal; without one the plain text is written, so that it can be piped.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False, soft_wrap=True)
        self._style_of: dict[str, str] = {}
        self.finished: Finished | None = None

    def show(self, event: Event) -> None:
        from rich.text import Text

        if isinstance(event, Finished):
            self.finished = event
        if not isinstance(event, Chunk) or not event.text:
            return
        accepted = [t for t in event.tokens if t.origin is Origin.ACCEPTED]
        text = Text(event.text)
        if accepted and event.tokens:
            # Text has no token borders of its own: the accepted share of the tokens marks that share of the text.
            cut = round(len(event.text) * len(accepted) / len(event.tokens))
            text.stylize(self._style(accepted[0].drafter), 0, cut)
        self._console.print(text, end="")

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
