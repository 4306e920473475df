"""Models of texts as transformers writes them: tiny, with random weights, and tokenizers of
letters or of pieces of words.
"""

import json
from pathlib import Path

import torch

WORDS = ["the", "cat", "sat", "on", "mat", "dog", "ran", "to", "a", "big", "red", "##s", "##ing"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = [*SPECIAL, *WORDS, *(letter for letter in LETTERS if letter not in WORDS)]
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
}


def write_bert(
    folder: Path,
    head: str = "ForMaskedLM",
    tokens=None,
    seed: int = 0,
    longest: int = 24,
    layers: int = 3,
    classes: int = 2,
) -> Path:
    """A BERT whose tokens are words and letters: `BertForMaskedLM`, "ForSequenceClassification",
    or "Model" without a head.
    """
    import transformers

    tokens = TOKENS if tokens is None else tokens
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(tokens),
        max_position_embeddings=longest,
        pad_token_id=0,
        initializer_range=0.5,
        num_labels=classes,
        **{**SIZES, "num_hidden_layers": layers},
    )
    getattr(transformers, f"Bert{head}")(config).eval().save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    transformers.BertTokenizer(vocab={token: k for k, token in enumerate(tokens)}).save_pretrained(
        folder
    )
    return folder


def write_albert(folder: Path, seed: int = 0) -> Path:
    """An ALBERT of letters, whose blocks are one module, with a file vocab.txt for `split =
    "characters"`.
    """
    import transformers

    tokens = [*SPECIAL, *LETTERS]
    torch.manual_seed(seed)
    config = transformers.AlbertConfig(
        vocab_size=len(tokens),
        embedding_size=8,
        max_position_embeddings=24,
        initializer_range=0.5,
        **SIZES,
    )
    transformers.AlbertForMaskedLM(config).eval().save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    return folder


def write_gpt2(folder: Path, seed: int = 0, begins: bool = True) -> Path:
    """A GPT-2 of letters and blanks; with `begins`, a token for the beginning of a text."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = ["<|endoftext|>", *LETTERS, "Ġ", "'", "."]
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=len(tokens), n_embd=16, n_layer=2, n_head=2, n_positions=40, initializer_range=0.5,
        bos_token_id=0 if begins else None, eos_token_id=0,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).eval().save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE({token: k for k, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>"
    ).save_pretrained(folder)
    return folder


def write_sentence_model(folder: Path, **pooling) -> Path:
    """A BERT as sentence-transformers writes it; `pooling`: of its pooling config."""
    write_bert(folder, "Model", seed=4)
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    parts = [
        {"idx": k, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for k, (kind, path) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(parts))
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{name}": False for name in ("cls_token", "mean_tokens", "max_tokens")}
    modes |= pooling or {"pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 16, **modes})
    )
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 20, "do_lower_case": False})
    )
    return folder
