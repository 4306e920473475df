"""A CLIP model as transformers writes it: tiny, with random weights and a tokenizer of letters."""

import json
from pathlib import Path

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write(folder: Path, seed: int = 0, image_size: int = 16, **preprocessing) -> Path:
    """Write model, tokenizer and preprocessing (options of CLIPImageProcessor) to a folder."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
    }
    names = {
        "vocab_size": 54,
        "bos_token_id": 52,
        "eos_token_id": 53,
        "pad_token_id": 53,
        "max_position_embeddings": 24,
    }
    torch.manual_seed(seed)
    config = CLIPConfig(
        text_config={**sizes, **names},
        vision_config={**sizes, "image_size": image_size, "patch_size": 4},
        projection_dim=12,
    )
    CLIPModel(config).eval().save_pretrained(folder)
    tokens = [
        *LETTERS,
        *(f"{letter}</w>" for letter in LETTERS),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    (folder / "vocab.json").write_text(
        json.dumps({token: number for number, token in enumerate(tokens)})
    )
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 24})
    )
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    if preprocessing:
        CLIPImageProcessor(**preprocessing).save_pretrained(folder)
    return folder
