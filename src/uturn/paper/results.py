"""Reproduced figures as `figN.json`: written by `reproduce`, read back for the page."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from uturn.core.checks import one_line, validation_words
from uturn.core.files import whole_file
from uturn.paper.registry import FIGURES
from uturn.paper.verdicts import Verdict


@dataclass
class Result:
    """A reproduced figure: its verdicts and the names of its files in the output folder."""

    figure: str
    title: str
    caption: str
    scale: str
    verdicts: list[Verdict]
    files: dict[str, str]
    seconds: float = 0.0
    claim: str = ""

    @property
    def passed(self) -> bool:
        return all(verdict.passed is not False for verdict in self.verdicts)


def save_result(result: Result, out: Path) -> None:
    with whole_file(out / f"{result.figure}.json") as file:
        file.write(json.dumps(asdict(result), indent=1, ensure_ascii=False).encode())


def load_results(out: str | Path) -> list[Result]:
    """Results of all figures found in an output folder; ValueError if one of them is damaged."""
    paths = {name: Path(out) / f"{name}.json" for name in FIGURES}
    return [_read(name, path) for name, path in paths.items() if path.exists()]


def _read(name: str, path: Path) -> Result:
    try:
        result = TypeAdapter(Result).validate_json(path.read_bytes())
        # The page links to these files, so they must be plain names: no script, no other folder.
        if result.figure != name or not all(re.fullmatch(r"\w[\w.-]*", file) for file in result.files.values()):
            raise ValueError(f"figure {result.figure!r} with files {result.files}")
        if not {"png", "pdf", "data"} <= result.files.keys():
            raise ValueError("files are missing")
    except (ValueError, OSError) as error:
        words = validation_words(error) if isinstance(error, ValidationError) else one_line(error)
        raise ValueError(f"{path} is damaged ({words}); run `uturn reproduce {name}` again") from None
    return result
