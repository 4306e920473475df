"""Write passages of the held-out novel for experiments: 400 lines of 64 characters.

python training/text/export_passages.py --out src/uturn/assets/text/passages.txt
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import data

from uturn.core.random import keys, uniforms

PASSAGES = 102  # purpose of the random numbers; numbers above 99 are not used by the package
_SENTENCE = re.compile(
    r'(?:^|(?<=[.!?] )|(?<=[.!?]" ))(?<!Mr[.] )(?<!Mrs[.] )(?<!Dr[.] )(?<!St[.] )"?[A-Z]'
)


def passages(text: str, count: int, length: int, seed: int) -> list[str]:
    """Passages of a text that begin with a sentence, end with a word and do not overlap: `count`
    of them, in random order.
    """
    found: list[str] = []
    end = 0
    for match in _SENTENCE.finditer(text):
        start, stop = match.start(), match.start() + length
        if start >= end and stop < len(text) and text[stop - 1] != " " and text[stop] == " ":
            found.append(text[start:stop])
            end = stop
    if len(found) < count:
        raise SystemExit(f"{len(found)} passages found; expected {count} or more")
    order = uniforms(keys(seed, PASSAGES, range(len(found))), 1)[:, 0].argsort()
    return [found[i] for i in order[:count]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        default=None,
        help="folder of the R data file; that of the Debian package by default",
    )
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    lines = passages(data.load("held_out", args.data), args.count, args.length, args.seed)
    args.out.write_text("\n".join(lines) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
