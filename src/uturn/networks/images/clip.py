"""CLIP models of transformers (arXiv:2103.00020): image encoders, and classifiers whose classes
are texts ("zero-shot").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from uturn.core.checks import expect
from uturn.core.files import read_text
from uturn.networks.libraries import library, reading

_TEXTS_AT_ONCE = 64


class ClipImages(nn.Module):
    """The image tower of a CLIP model: preprocessed images to projected embeddings (batch, dim).

    With `classes` (num_classes, dim), embeddings from `ClipTexts`, it returns logits (batch,
    num_classes): the cosine of the embeddings of image and text, times the learned scale.
    """

    classes: torch.Tensor | None

    def __init__(
        self,
        vision_model: nn.Module,
        visual_projection: nn.Module,
        classes: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.vision_model = vision_model
        self.visual_projection = visual_projection
        self.register_buffer("classes", classes)
        self.num_classes = 0 if classes is None else len(classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = self.vision_model(pixel_values=images).pooler_output
        embedding: torch.Tensor = self.visual_projection(pooled)
        if self.classes is None:
            return embedding
        return nn.functional.normalize(embedding, dim=-1) @ self.classes.T

    def with_classes(self, classes: torch.Tensor) -> ClipImages:
        return ClipImages(self.vision_model, self.visual_projection, classes).eval()


class ClipTexts(nn.Module):
    """The text tower of a CLIP model with its projection, its tokenizer and the scale of its
    logits.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - a `transformers.CLIPModel`
        tokenizer: Callable[..., Any],  # of transformers
    ) -> None:
        super().__init__()
        self.text_model = model.text_model
        self.text_projection = model.text_projection
        self.logit_scale = model.logit_scale
        self.tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings of texts (len(texts), dim), with the scale of the logits as their norm."""
        limit = self.text_model.config.max_position_embeddings
        for number, text in enumerate(texts):
            is_own = bool(text.strip()) and text not in texts[:number]
            fits = is_own and len(self.tokenizer(text)["input_ids"]) <= limit
            expect(fits, f"class {number}", text, f"a text of its own, of at most {limit} tokens")
        expect(len(texts) > 1, "number of texts", len(texts), "one for each class, two or more")
        batches = []
        for first in range(0, len(texts), _TEXTS_AT_ONCE):
            batches.append(self._embeddings(texts[first : first + _TEXTS_AT_ONCE]))
        weights: torch.Tensor = self.logit_scale.exp() * nn.functional.normalize(
            torch.cat(batches), dim=-1
        )
        return weights

    @torch.no_grad()
    def _embeddings(self, texts: Sequence[str]) -> torch.Tensor:
        tokens = self.tokenizer(list(texts), padding=True, return_tensors="pt")
        tokens = tokens.to(self.logit_scale.device)
        output = self.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
        embeddings: torch.Tensor = self.text_projection(output.pooler_output)
        return embeddings


@dataclass(frozen=True)
class Clip:
    """A CLIP model in float32."""

    images: ClipImages
    texts: ClipTexts
    transforms: Callable[[torch.Tensor], torch.Tensor]
    """Transforms of images in [0, 1] for `images`."""


def load_clip(name: str) -> Clip:
    """A `transformers.CLIPModel` from a folder or a hub."""
    where = f"classifier = 'clip:{name}'"
    transformers = library("transformers", where)
    library("torchvision", where, "images")
    is_hub_name = re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None
    is_model = name != "" and (Path(name).is_dir() or is_hub_name)
    expected = (
        "a folder of transformers.CLIPModel, or its name on a hub, OWNER/NAME; no such folder"
    )
    expect(is_model, "classifier", f"clip:{name}", expected)
    expected = (
        "expected a folder that CLIPModel and its tokenizer were saved to, or the name of such a"
        " model on a hub"
    )
    with reading(where, expected):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        expect(config.model_type == "clip", "model_type", config.model_type, "'clip'")
        model, loading = transformers.CLIPModel.from_pretrained(name, output_loading_info=True)
        missing = sorted(map(str, loading["missing_keys"]))
        expect(not missing, "missing weights", missing, "none")
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        transforms = _transforms(name, model.config.vision_config.image_size)
    model = model.float().eval()
    images = ClipImages(model.vision_model, model.visual_projection)
    return Clip(images, ClipTexts(model, tokenizer), transforms)


def _transforms(name: str, size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Resizing, crop and normalisation from `preprocessor_config.json`, or those of OpenAI's
    models without this file.
    """
    from torchvision import transforms
    from transformers import CLIPImageProcessor

    if Path(name).is_dir() and not (Path(name) / "preprocessor_config.json").exists():
        processor = CLIPImageProcessor(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        )
    else:
        processor = CLIPImageProcessor.from_pretrained(name)
    edge = dict(processor.size)
    crop = dict(processor.crop_size)
    size_of_edge = edge.get("shortest_edge") or (edge["height"], edge["width"])
    bicubic = transforms.InterpolationMode.BICUBIC
    resize = transforms.Resize(size_of_edge, bicubic, antialias=True)
    cropped = transforms.CenterCrop((crop["height"], crop["width"]))
    normalized = transforms.Normalize(processor.image_mean, processor.image_std)
    preprocess: Callable[[torch.Tensor], torch.Tensor] = transforms.Compose(
        [resize, cropped, normalized]
    )
    return preprocess


TEMPLATE = "a photo of a {}"


def class_texts(prompts: str | None, names: Sequence[str] | None) -> tuple[str, ...] | None:
    """A text for each class; None if there are neither prompts nor at least two names.

    `prompts`: a template, in which {} is replaced by the name of a class, with spaces for
    underscores; by default `TEMPLATE`. Or a file with one text on each line.
    """
    if prompts is not None and "{}" not in prompts:
        expected = "expected a file, one text a line, or a template with {} for the class"
        with reading(f"class_prompts = {prompts!r}", expected):
            return tuple(line.strip() for line in read_text(prompts).rstrip().split("\n"))
    expected = "a file, one text a line, as classes have no names"
    expect(prompts is None or names is not None, "class_prompts", prompts, expected)
    if names is None or (prompts is None and len(names) < 2):
        return None
    template = prompts or TEMPLATE
    return tuple(template.replace("{}", name.replace("_", " ")) for name in names)
