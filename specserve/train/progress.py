"""Training progress for people: a live bar on a terminal, a line now and then elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from specserve.train.loop import Progress, Reporter


def describe(progress: Progress) -> str:
    minutes, seconds = divmod(round(progress.eta_s), 60)
    figures = "".join(f"  {name} {value:.4g}" for name, value in progress.figures.items())
    loss = "" if progress.loss is None else f"  loss {progress.loss:.3f}"
    return (
        f"step {progress.step}  {progress.done:6.1%}{loss}  "
        f"{progress.tokens_per_s:,.0f} tokens/s  {minutes}:{seconds:02d} left{figures}"
    )


@contextmanager
def shown(title: str, *, every: int = 20, console: Console | None = None) -> Iterator[Reporter]:
    """A report callback; without a terminal it prints every `every` steps, and whenever figures arrive."""
    console = console or Console(stderr=True)
    if not console.is_terminal:

        def line(progress: Progress) -> None:
            if progress.step % every == 0 or progress.figures or progress.done >= 1:
                print(f"{title}: {describe(progress)}", file=console.file, flush=True)

        yield line
        return
    with Bar(TextColumn(title), BarColumn(), TextColumn("{task.description}"), console=console) as bar:
        task = bar.add_task("starting", total=1.0)

        def live(progress: Progress) -> None:
            bar.update(task, completed=progress.done, description=describe(progress))

        yield live
