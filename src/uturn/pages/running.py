"""What a page says of a study that runs, or was stopped."""

from __future__ import annotations

import time
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class RunningStudy:
    """A study that is filling the folder of a page.

    `words`: what it is doing. `parts`: finished parts of the study, all of them, and what they are, such as (2, 25, "figures").
    `tasks`: tasks of this part that are done, and all of them. `began`, `written`: when the study began, and when this page was
    written, in seconds since 1970. `every`: seconds until the next page. `stopped`: whether it has ended early.
    """

    study: str
    words: str
    parts: tuple[int, int, str] | None
    tasks: tuple[float, int] | None
    began: float
    written: float
    every: float
    stopped: bool = False

    @property
    def share(self) -> float | None:
        """Share of the study that is done, 0 .. 1; None if it is unknown."""
        of_part = None if self.tasks is None else self.tasks[0] / max(self.tasks[1], 1)
        if self.parts is None:
            return of_part
        finished, total, _ = self.parts
        return min(1.0, (finished + (of_part or 0.0)) / max(total, 1))

    def attributes(self) -> str:
        """Attributes of the element `html`, by which the script of the page loads it again; none if the study was stopped."""
        return "" if self.stopped else f' data-every="{self.every:.0f}" data-written="{self.written:.0f}"'

    def card(self) -> str:
        """The card of the summary."""
        counts = ["{} of {} {}".format(*self.parts)] if self.parts else []
        counts += [f"{self.tasks[0]:.0f} of {self.tasks[1]} tasks"] if self.tasks else []
        share = "" if self.share is None else f'<p class="big">{100 * self.share:.0f} %</p>'
        if self.share is not None:
            share += f'<progress max="1" value="{self.share:.4f}" aria-label="share that is done"></progress>'
        words = [f'<p class="of">{escape(counts[0])}</p>'] if counts else []
        words += [f"<p>{escape(': '.join([self.words, *counts[1:]]))}.</p>"] if self.words else []
        label = f"{'Stopped' if self.stopped else 'Running'} · {escape(self.study)}"
        return f'<div class="card live"><p class="label">{label}</p>{share}{"".join(words)}{self._end()}</div>'

    def _end(self) -> str:
        if self.stopped:
            return "<p>What was done before is shown. The same command continues.</p>"
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.began))
        written = time.strftime("%H:%M:%S", time.localtime(self.written))
        return (
            f'<p class="unit">Begun {began}, page written {written}. What is done so far is shown.</p>'
            '<p class="fail" id="late" role="status"></p><label class="check"><input type="checkbox" id="refresh" checked> '
            f"load this page again every {self.every:.0f} s</label>"
        )
