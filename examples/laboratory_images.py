"""U-turns of images for the page of `uturn explore`, with the classes that a classifier reads in
them.

`python laboratory_images.py` computes them with the Fashion-MNIST model that comes with the
package, in about four minutes of processor time, and writes `src/uturn/assets/lab/images.json`,
which every page includes.
"""

import base64
import io
import json
from pathlib import Path

import numpy as np
import torch

import uturn as ut
from uturn.pages.pictures import as_picture

OUT = Path(__file__).parents[1] / "src" / "uturn" / "assets" / "lab" / "images.json"
ITEMS = (1, 2, 3, 5, 8, 9)  # the first test image of six classes
# Reverse steps of the whole chain, and of each U-turn.
STEPS, BACK, CLONES, SEED = 50, range(5, 51, 5), 4, 0


def png(image):
    """An image (1, height, width) in [-1, 1] as a PNG in base64; what is beyond, as in noisy
    images, is clipped.
    """
    file = io.BytesIO()
    as_picture(image).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


@torch.inference_mode()
def read(images, classifier):
    """Pictures of images, each with the class that the classifier reads and the probability that
    it gives to it.
    """
    best = torch.softmax(classifier(torch.tensor(images)), dim=1).max(dim=1)
    return [
        {
            "picture": png(image),
            "class": ut.fashion_mnist.CLASS_NAMES[label],
            "probability": round(float(probability), 4),
        }
        for image, label, probability in zip(images, best.indices, best.values, strict=True)
    ]


def main():
    source, backward = ut.sources.FashionMNISTSource(), ut.backward.DiffusionModel(steps=STEPS)
    corruption = backward.forward_process(source)
    classifier = ut.fashion_mnist.load_classifier()
    originals = next(source.blocks(np.array(ITEMS), SEED, source.count()))
    blocks = ((back, originals, back / STEPS, SEED) for back in BACK)
    turns = dict(ut.u_turns(blocks, corruption, backward, clones=CLONES))
    shown = {"steps": STEPS, "seed": SEED, "clones": CLONES, "back": list(BACK), "originals": []}
    for k, (item, original) in enumerate(
        zip(ITEMS, read(originals.images, classifier), strict=True)
    ):
        levels = [
            {
                "noisy": png(turns[back].noisy.values[k]),
                "reconstructions": read(turns[back].reconstructions[k], classifier),
            }
            for back in BACK
        ]
        shown["originals"].append({"item": item, **original, "levels": levels})
    OUT.write_text(json.dumps(shown, indent=1) + "\n", encoding="utf-8")
    print(f"{OUT}: {OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
