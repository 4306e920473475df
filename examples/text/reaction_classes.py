"""Reactions with known classes for the classifier of the package rxnfp, out of two packages;
nothing is fetched here.

    pip download --no-deps -d downloads rxnfp==0.1.0                              # 75 MB, MIT
    pip download --no-deps -d downloads --no-binary drfp drfp==0.3.7              # source archive, 97 MB, MIT
    python -m zipfile -e downloads/rxnfp-0.1.0-py3-none-any.whl out
    python examples/text/reaction_classes.py downloads out

`out/rxnfp/models/transformers/` has the two models: `bert_pretrained`, a masked model, and
`bert_ft_10k_25s`, the same after training on classes (Schwaller et al., Nature Machine Intelligence
2021). `out/reactions.csv` has one reaction a line, `precursors>>product`, and its class: 50 classes
of 1,000 reactions each, assigned by rules to reactions from patents of the United States (Schneider
et al., J. Chem. Inf. Model. 2015; Lowe 2012, CC0). The 10,000 reactions with which the classifier
was trained are left out; the masked model was trained on reactions of patents, perhaps on these
ones. The number of a class is its place in the alphabetical order of the names in
`out/classes.txt`, as in the classifier.
"""

import argparse
import random
from pathlib import Path

from reactions import TOKEN, one, rows_of

TABLE = "drfp-0.3.7/data/schneider50k.tsv"
VOCABULARY = "rxnfp/models/transformers/bert_pretrained/vocab.txt"


def labelled(
    archive: Path, known: set[str], number: int, longest: int, seed: int
) -> tuple[list[str], list[tuple[str, int]]]:
    """Names of the classes; distinct reactions of the test split of at most `longest` known
    tokens, with their classes.
    """
    rows = rows_of(archive, TABLE, delimiter="\t")
    names = sorted({row["rxn_class"] for row in rows})
    trained = {row["rxn"] for row in rows if row["split"] == "train"}
    test = sorted(
        {(row["rxn"], names.index(row["rxn_class"])) for row in rows if row["split"] == "test"}
    )
    random.Random(seed).shuffle(test)
    fitting = (
        (reaction, TOKEN.findall(reaction), label)
        for reaction, label in test
        if reaction not in trained
    )
    kept = [
        (reaction, label)
        for reaction, tokens, label in fitting
        if len(tokens) <= longest and known.issuperset(tokens)
    ]
    return names, kept[:number]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("downloads", type=Path, help="folder with the two downloaded packages")
    parser.add_argument("out", type=Path, help="folder that has the unpacked rxnfp, to write into")
    parser.add_argument("--number", type=int, default=1000, help="reactions (default: 1000)")
    parser.add_argument(
        "--longest",
        type=int,
        default=64,
        help="largest number of tokens of a reaction (default: 64)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw of reactions (default: 0)")
    options = parser.parse_args()
    try:
        archive, vocabulary = (
            one(options.downloads, "drfp-0.3.7.tar.gz"),
            one(options.out, VOCABULARY),
        )
    except ValueError as error:
        parser.error(str(error))
    known = set(vocabulary.read_text().split())
    names, rows = labelled(archive, known, options.number, options.longest, options.seed)
    (options.out / "reactions.csv").write_text(
        "text,label\n" + "".join(f'"{reaction}",{label}\n' for reaction, label in rows)
    )
    (options.out / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    print(f"{len(rows)} reactions of {len({label for _, label in rows})} classes in {options.out}")


if __name__ == "__main__":
    main()
