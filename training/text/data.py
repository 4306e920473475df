"""Jane Austen's six novels as running text, from the Debian package `r-cran-janeaustenr`.

The package holds them as an R data file, which PyPI's `rdata` reads. Where R is not wanted, the
package need not be installed:

    apt-get download r-cran-janeaustenr && dpkg-deb -x r-cran-janeaustenr_*.deb novels
    pip install rdata

and `--data novels/usr/lib/R/site-library/janeaustenr/data`.
"""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np

DEBIAN_FOLDER = Path("/usr/lib/R/site-library/janeaustenr/data")
TRAINING = ("emma", "mansfieldpark", "northangerabbey", "prideprejudice", "sensesensibility")
HELD_OUT = "persuasion"
CHARACTERS = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,;:!?'\"-()"
"""The vocabulary; the token of a character is its place here."""
LENGTH = 128
_HEADING = re.compile(r"(?i)(chapter|volume)\s+[ivxl\d]+\.?|finis|the end")


def read_novel(name: str, folder: str | Path | None = None) -> list[str]:
    """Lines of a novel, as the package has them."""
    import rdata

    file = Path(folder or DEBIAN_FOLDER) / "Rdata.rdx"
    if not file.is_file():
        raise SystemExit(
            f"no {file}: install the Debian package r-cran-janeaustenr, or see {__file__} for a way"
            " without R"
        )
    start, size = rdata.read_rds(file)["variables"][name]
    stored = file.with_suffix(".rdb").read_bytes()[start : start + size]
    content = zlib.decompress(stored[4:])
    if len(content) != struct.unpack(">I", stored[:4])[0]:
        raise SystemExit(
            f"{file.with_suffix('.rdb')} is damaged: {name} has another size than it says"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "assumed RDS"
        lines = rdata.conversion.convert(rdata.parser.parse_data(content))
    return [str(line) for line in lines]


def paragraphs(lines: list[str]) -> list[str]:
    """Paragraphs of a novel in one line each, from the first chapter on, in the characters of the
    vocabulary.

    Marks of emphasis are removed; Mr, Mrs and Dr get a full stop, which the edition of Persuasion
    omits. Left out are headings, and paragraphs with other characters, such as digits: dates and
    notes of editors.
    """
    blocks = [
        re.sub(r"\s+", " ", block).strip() for block in re.split(r"\n\s*\n", "\n".join(lines))
    ]
    first = next(i for i, block in enumerate(blocks) if re.match(r"(?i)chapter\b", block))
    blocks = [block.replace("_", "") for block in blocks[first:] if not _HEADING.fullmatch(block)]
    blocks = [re.sub(r"\b(Mrs?|Dr)(?= )", r"\1.", block) for block in blocks]
    return [
        block for block in blocks if block and not block.isupper() and {*block} <= {*CHARACTERS}
    ]


def encode(text: str) -> np.ndarray:
    """Tokens of a text, int64 (length,)."""
    table = {character: token for token, character in enumerate(CHARACTERS)}
    return np.array([table[character] for character in text], np.int64)


def load(split: str, folder: str | Path | None = None) -> str:
    """Running text of the split "training" (five novels) or "held_out" (Persuasion)."""
    names = {"training": TRAINING, "held_out": (HELD_OUT,)}[split]
    return " ".join(" ".join(paragraphs(read_novel(name, folder))) for name in names)
