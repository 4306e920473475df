"""Tiny language models with random weights, as transformers and as code of their own write them;
and exact tabular ones.
"""

import json
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import torch

import uturn as ut

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", "##a", "##b"]


def vocabulary(folder: Path, words=WORDS) -> Path:
    """A WordPiece tokenizer that AutoTokenizer reads, and its vocab.txt."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    made = Tokenizer(
        models.WordPiece({word: place for place, word in enumerate(words)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))],
    )
    names = {f"{name}_token": token for name, token in SPECIAL.items() if token in words}
    PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=16, **names).save_pretrained(
        folder
    )
    return folder


def write(folder: Path, kind: str = "bert", seed: int = 0, **options) -> Path:
    """A masked language model of transformers: "bert", "modernbert" or "esm"; or a causal one,
    "gpt2".
    """
    import transformers

    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    table = {"vocab_size": len(WORDS), "max_position_embeddings": 16, "pad_token_id": 0} | options
    name = {"bert": "Bert", "modernbert": "ModernBert", "esm": "Esm", "gpt2": "GPT2"}[kind]
    if kind == "modernbert":
        table |= {
            "cls_token_id": 2,
            "sep_token_id": 3,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "local_attention": 8,
        }
    if kind == "esm":
        table |= {"mask_token_id": 4, "token_dropout": False}
    if kind == "gpt2":
        sizes, table = (
            {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16},
            {"vocab_size": len(WORDS)},
        )
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**sizes, **table)
    model = getattr(transformers, f"{name}{'LMHeadModel' if kind == 'gpt2' else 'ForMaskedLM'}")(
        config
    ).eval()
    with torch.no_grad():  # so that logits differ more than those of the usual initial weights
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.mul_(8)
    model.save_pretrained(folder)
    return vocabulary(folder)


_CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel


class Config(PretrainedConfig):
    model_type = "{model_type}"

    def __init__(self, vocab_size=17, mask_token_id=4, **options):
        super().__init__(**options)
        self.vocab_size, self.mask_token_id = vocab_size, mask_token_id


class Model(PreTrainedModel):
    config_class = Config
    all_tied_weights_keys = {{}}

    def __init__(self, config):
        super().__init__(config)
        self.embed = torch.nn.Embedding(config.vocab_size, 8)
        self.out = torch.nn.Linear(8, config.vocab_size)
        self.post_init()

    def forward(self, {arguments}):
        seen = self.embed(input_ids)
        mixed = seen + seen.roll(1, 1) + seen.mean(1, keepdim=True)
        {result}
"""
_WITHOUT_REPORT = """
    @classmethod
    def from_pretrained(cls, *arguments, **options):
        found = super().from_pretrained(*arguments, **options)
        found.generation_config = None  # so that it must be a model, no pair of a model and a report
        return found
"""
_FORMS = {
    "mdlm": ("input_ids, timesteps", "return self.out(mixed * (1 + timesteps[:, None, None]))"),
    "dream": (
        # Which is that of the attention, (batch, heads, length, length).
        "input_ids, attention_mask=None",
        (
            "mixed = torch.nn.functional.scaled_dot_product_attention(mixed, mixed, mixed,"
            " attention_mask)\n        return type('Output', (), dict(logits=self.out(mixed)))()"
        ),
    ),
}


def write_with_code(folder: Path, kind: str, seed: int = 0) -> Path:
    """A model that comes with code of its own: "mdlm" or "dream"."""
    from safetensors.torch import save_file

    vocabulary(folder)
    arguments, result = _FORMS[kind]
    model_type = {"dream": "Dream"}.get(kind, kind)
    (folder / "modeling_own.py").write_text(
        _CODE.format(model_type=model_type, arguments=arguments, result=result)
    )
    if kind == "dream":
        with (folder / "modeling_own.py").open("a") as file:
            file.write(_WITHOUT_REPORT)
    auto = "AutoModelForMaskedLM" if kind == "mdlm" else "AutoModel"
    table = {
        "model_type": model_type,
        "vocab_size": len(WORDS),
        "architectures": ["Model"],
        "mask_token_id": 4,
    }
    table["auto_map"] = {"AutoConfig": "modeling_own.Config", auto: "modeling_own.Model"}
    (folder / "config.json").write_text(json.dumps(table))
    generator = torch.Generator().manual_seed(seed)
    sizes = {
        "embed.weight": (len(WORDS), 8),
        "out.weight": (len(WORDS), 8),
        "out.bias": (len(WORDS),),
    }
    save_file(
        {name: torch.randn(size, generator=generator) for name, size in sizes.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


class Table:
    """A joint law of strings of `D` symbols out of `V`, whose conditionals are exact; -1, or the
    id V, is the mask.
    """

    V, D, mask_id = 3, 4, 3

    def __init__(self, seed=0, concentration=0.15):
        self.law = np.random.default_rng(seed).dirichlet(np.full(self.V**self.D, concentration))
        self.strings = np.array(list(product(range(self.V), repeat=self.D)))

    def given(self, ids):
        """The posterior of all strings, given ids with masks."""
        fits = ((self.strings == ids) | (np.asarray(ids) < 0) | (np.asarray(ids) >= self.V)).all(1)
        return self.law * fits / max((self.law * fits).sum(), 1e-300)

    def conditionals(self, ids):
        onehot = self.strings[..., None] == np.arange(self.V)
        different, of = np.unique(ids, axis=0, return_inverse=True)  # many rows are equal
        return np.array([np.tensordot(self.given(row), onehot, 1) for row in different])[of]

    def logits(self, ids, noise):
        if ids.shape[1] != self.D:
            return torch.zeros(*ids.shape, self.V)
        with np.errstate(divide="ignore"):
            return torch.from_numpy(np.log(self.conditionals(ids.numpy())))


class TableDenoiser(Table):
    """The same law as a denoiser of masked strings."""

    vocab_size, num_leaves, corruption = Table.V, Table.D, ut.Masking()

    def posterior(self, noisy):
        return self.conditionals(noisy.values).astype(np.float32)


class Shifted(Table):
    """The same law; the logits of position i stand at position i - 1, and those of the first one
    at the first.
    """

    shift = True

    def logits(self, ids, noise):
        out = super().logits(ids, noise)
        return torch.cat([out[:, 1:], out[:, -1:]], 1)  # that of position 0 is lost


class Replaced(Table):
    """The same law under uniform replacement: the posterior of each symbol as ratios of p_t(x with
    a at i) to p_t(x).

    For the symbol that is there, whose ratio is 1, it gives a number of no meaning, as networks do
    that are not trained on it.
    """

    mask_id, corruption, output = None, "uniform", "ratios"

    def logits(self, ids, noise):
        if ids.shape[1] != self.D:
            return torch.zeros(*ids.shape, self.V)
        # Many are equal.
        rows, of = np.unique(np.c_[ids.numpy(), noise.numpy()], axis=0, return_inverse=True)
        out = np.zeros((len(rows), self.D, self.V))
        for row, (*one, share) in enumerate(rows.tolist()):
            one, density = tuple(map(int, one)), self.density(round(1 - share, 9))
            for i, a in product(range(self.D), range(self.V)):
                out[row, i, a] = (
                    2.0
                    if a == one[i]
                    else np.log(density[(*one[:i], a, *one[i + 1 :])] / density[one])
                )
        return torch.from_numpy(out[of])

    @lru_cache  # noqa: B019, a few noise levels
    def density(self, alpha):
        """p_t of all strings, an array with an axis for each position."""
        kernel = alpha * np.eye(self.V) + (1 - alpha) / self.V
        found = self.law.reshape([self.V] * self.D)
        for axis in range(self.D):
            found = np.moveaxis(np.tensordot(kernel, found, (1, axis)), 0, axis)
        return found


def table():
    return Table()


def replaced():
    return Replaced()
