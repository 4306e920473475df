"""Language models from folders, hubs, files of this package, and functions of one's own."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import torch

from uturn.core.checks import checked_integer, one_line, shown
from uturn.core.imports import import_function, is_import_path
from uturn.networks.images.pipelines import check_hub
from uturn.networks.images.pretrained import checked_device
from uturn.networks.libraries import without_bars
from uturn.networks.state_dicts import fingerprint
from uturn.networks.texts.language import CHANNELS, OUTPUTS, TIMES, LanguageModel, checked_choice
from uturn.networks.texts.tokenizers import MISSING, Tokenizer, Vocabulary, load_tokenizer

FORMS = "'module:function', a function without arguments that returns an object with the members of uturn.networks.TokenNetwork"
# What the configuration of a model does not say about its output, by its `model_type`.
_KINDS: dict[str, dict[str, Any]] = {
    "mdlm": {"time": "sigma", "mask_id": "last"},  # arXiv:2406.07524
    "llada": {},  # arXiv:2502.09992
    "dream": {"shift": True},  # arXiv:2508.15487
}
_AUTO = ("AutoModelForMaskedLM", "AutoModel", "AutoModelForCausalLM")  # classes under which code that comes with a model is named
_OFFSET = ("roberta", "xlm-roberta", "camembert", "esm")  # their position embeddings begin after the padding token
_PLAIN = ("dream",)  # kinds whose code reads no `attention_mask` (batch, length), and does not report on weights
_TIME_NAMES = ("timesteps", "sigma", "noise", "t")


class TransformersNetwork(torch.nn.Module):
    """A model of transformers as a `TokenNetwork`, or any module that takes ids."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        taken = inspect.signature(model.forward).parameters
        self.takes_padding = "attention_mask" in taken and _kind(getattr(model, "config", None)) not in _PLAIN
        self._time = next((name for name in _TIME_NAMES if name in taken), None)
        self._ids = "input_ids" if "input_ids" in taken else next(iter(taken))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def forward(self, ids: torch.Tensor, noise: torch.Tensor, real: torch.Tensor | None = None, **options: Any) -> Any:
        """What the module gives; `options` go to it."""
        given: dict[str, Any] = {self._ids: ids, **options}
        if self.takes_padding and real is not None:
            given["attention_mask"] = real
        if self._time is not None:
            given[self._time] = noise
        return self.model(**given)

    def logits(self, ids: torch.Tensor, noise: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
        out = self(ids, noise, real)
        return out if isinstance(out, torch.Tensor) else getattr(out, "logits", out)


class Embedded(torch.nn.Module):
    """A `MaskedTransformer` as a `TokenNetwork`."""

    takes_padding = True

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.mask_id = model, model.options["vocab_size"]
        self.length = model.options["length"]

    def logits(self, ids: torch.Tensor, noise: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
        return self.model(ids, None if real is None else real.bool())


def load_language_model(
    model: str,
    *,
    tokenizer: str | None = None,
    split: str | None = None,
    shift: bool | None = None,
    time: str | None = None,
    output: str | None = None,
    corruption: str | None = None,
    mask_id: int | None = None,
    trust_remote_code: bool = False,
    dtype: str = "float32",
    device: str | None = None,
) -> LanguageModel:
    """A language model that denoises tokens.

    Parameters
    ----------
    model : str
        "embedded"; a folder, or the name of a model on a hub, that `AutoModelForMaskedLM` reads, or that comes with code of its
        own (MDLM, LLaDA, Dream); a file of `uturn.networks` with a MaskedTransformer; or "module:function" (`TokenNetwork`).
    tokenizer, split
        As in `load_tokenizer`; by default the tokenizer of the model.
    shift, time, output, corruption, mask_id
        As in `TokenNetwork`; by default what the model or its kind says.
    trust_remote_code : bool
        Whether code that comes with a model may run.
    dtype, device : str
        Precision of the network, and where it runs; by default "cuda" if available.

    Raises
    ------
    ValueError
        If the model or its tokenizer cannot be read, do not fit each other, or if the model denoises no tokens.
    """
    where = f"model = {model!r}"
    place = checked_device(device)
    said: dict[str, Any] = {"shift": shift, "time": time, "output": output, "corruption": corruption, "mask_id": mask_id}
    said = {name: value for name, value in said.items() if value is not None}
    if model == "embedded" or model.endswith(".safetensors"):
        network, words, made = _read_file(model)
    elif is_import_path(model):
        network, words, made = _read_own(model, where)
    else:
        network, words, made = _read_folder(model, where, tokenizer, split, trust_remote_code)
    if tokenizer is not None and made is None:
        made = load_tokenizer(tokenizer, split, trust_remote_code)
    if isinstance(network, torch.nn.Module):
        network = network.to(place, getattr(torch, dtype)).eval()
    values: dict[str, Any] = {"shift": False, "time": "none", "output": "logits", "corruption": "masking", "mask_id": None}
    values |= {name: getattr(network, name) for name in values if getattr(network, name, None) is not None}
    values |= words | said
    values["corruption"] = {"mask": "masking"}.get(values["corruption"], values["corruption"])
    for name, known in (("time", TIMES), ("output", OUTPUTS), ("corruption", tuple(CHANNELS))):
        checked_choice(where, name, values[name], known)
    values["mask_id"] = _checked_mask(where, values["mask_id"])
    size = _tried(network, where, place, values)
    if values["corruption"] == "masking" and values["mask_id"] is None:
        raise ValueError(
            f"{where}: its tokenizer has no mask token; a causal model cannot unmask, others need `mask_id` (--mask-id)"
        )
    _check_sizes(where, size, made)
    special = () if made is None else tuple(sorted(made.special))
    forbidden = {*special, *(() if values["corruption"] == "uniform" else (values["mask_id"],))}
    length = words.get("length", getattr(network, "length", None))
    length = None if length is None else checked_integer(f"{where}: length", length, 1)
    identity = (
        fingerprint(network) if isinstance(network, torch.nn.Module) else str(getattr(network, "fingerprint", lambda: "")())
    )
    return LanguageModel(
        network,
        size,
        made,
        length=length,
        forbidden=tuple(sorted(place for place in forbidden if place is not None and place < size)),
        device=place,
        identity=identity,
        description=f"{Path(model).name or model}",
        **{name: values[name] for name in ("mask_id", "shift", "time", "output", "corruption")},
    )


def _read_file(model: str) -> tuple[Any, dict[str, Any], Tokenizer | None]:
    """A network of this package: its characters, if it has any, are the vocabulary."""
    from uturn.networks.files import load_network

    if model == "embedded":
        from uturn.sources.embedded_text import model_file

        model = str(model_file())
    network: Any = load_network(model, "masked_transformer")
    characters = network.options.get("characters")
    return Embedded(network), {}, None if characters is None else Vocabulary(tuple(characters), "characters")


def own_language(model: str) -> Any:
    """The user's function that gives a model, if its name is an import path; else None."""
    return import_function(model, f"model = {model!r}", FORMS) if is_import_path(model) else None


def network_from_function(model: str, where: str, forms: str) -> Any:
    """What the user's function "module:function" returns; errors begin with `where` and end with `forms`."""
    function = import_function(model, where, forms)
    try:
        return function()
    except Exception as error:
        raise ValueError(f"{where} fails ({one_line(error)}); expected {forms}") from error


def _read_own(model: str, where: str) -> tuple[Any, dict[str, Any], Tokenizer | None]:
    made = network_from_function(model, where, FORMS)
    if not callable(getattr(made, "logits", None)):
        raise ValueError(f"{where} gives a {type(made).__name__} without a method logits(ids, noise); expected {FORMS}")
    return made, {}, own_tokenizer(made, where)


def own_tokenizer(made: Any, where: str) -> Tokenizer | None:
    """The tokenizer of a network of the user, if it has one."""
    found = getattr(made, "tokenizer", None)
    lacking = [name for name in vars(Tokenizer) if not name.startswith("_") and not hasattr(found, name)]
    if found is not None and lacking:
        raise ValueError(
            f"{where}: its tokenizer is a {type(found).__name__} without {lacking[0]}; expected a Vocabulary of "
            f"uturn.networks.texts.tokenizers, or PretrainedTokenizer(tokenizer, name) with one of transformers"
        )
    return found


def read_config(model: str, where: str, trusted: bool, forms: str) -> Any:
    """The configuration of a model of transformers, from a folder or a hub; `forms`: what else the name can be, in errors."""
    try:
        from transformers import AutoConfig
    except ImportError:
        raise ValueError(f"{where} needs transformers, which is not installed; {MISSING}") from None
    check_name(model, where, forms)
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=trusted)
    except Exception as error:
        raise ValueError(f"{where} cannot be read ({reason(error, trusted)})") from None


def check_name(model: str, where: str, forms: str) -> None:
    """ValueError if there is no such folder and no such model on a hub, which is asked once."""
    if not model or not (Path(model).is_dir() or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model)):
        raise ValueError(
            f"{where}: no such folder; expected one that transformers reads, the name of a model on a hub, or {forms}"
        )
    if not Path(model).is_dir():
        check_hub(model, "config.json")


def _read_folder(
    model: str, where: str, tokenizer: str | None, split: str | None, trusted: bool
) -> tuple[Any, dict[str, Any], Tokenizer | None]:
    """A model of transformers, what its kind says about its output, and its tokenizer."""
    config = read_config(model, where, trusted, FORMS)
    network = TransformersNetwork(_model(model, where, config, trusted))
    read = load_tokenizer(tokenizer or model, split, trusted)
    words = dict(_KINDS.get(_kind(config), {}))
    size = int(getattr(config, "vocab_size", read.size))
    if words.get("mask_id") == "last":
        words["mask_id"] = size - 1
    else:
        words["mask_id"] = next((k for k in (getattr(config, "mask_token_id", None), read.mask_id) if k is not None), None)
    words["length"] = longest_call(config, read)
    return network, words, read


def _model(model: str, where: str, config: Any, trusted: bool) -> Any:
    import transformers

    own = getattr(config, "auto_map", None) or {}
    name = next((name for name in _AUTO if name in own), "AutoModelForMaskedLM")
    if own and not trusted and not _is_known(config):
        raise ValueError(f"{where} comes with code of its own; trust_remote_code (--trust-remote-code) runs it, if you trust it")
    causal = [one for one in architectures(config) if is_causal(one)]
    if not own and causal:
        raise ValueError(f"{where} is a causal model ({causal[0]}), which predicts the next token only; expected a masked one")
    try:
        with without_bars(transformers.utils.logging):
            found, missing = read_weights(getattr(transformers, name), model, config, trusted)
    except Exception as error:
        raise ValueError(f"{where} cannot be read as a masked language model ({reason(error, trusted)})") from None
    if missing:
        raise ValueError(
            f"{where}: the weights {', '.join(missing[:3])} are missing; expected a masked language model with its head"
        )
    return found


def architectures(config: Any) -> list[str]:
    """Names of the classes that a model of transformers was saved from, as config.json gives them."""
    named = getattr(config, "architectures", None)
    return [str(one) for one in named] if isinstance(named, list | tuple) else []


def is_causal(architecture: str) -> bool:
    """Whether a class of transformers predicts the next token."""
    return architecture.endswith(("ForCausalLM", "LMHeadModel"))


def read_weights(auto: Any, model: str, config: Any, trusted: bool) -> tuple[Any, list[str]]:
    """A model that a class of transformers reads, and the names of missing weights, as far as its code reports on them."""
    options = {"config": config, "trust_remote_code": trusted}
    if _kind(config) in _PLAIN:
        return auto.from_pretrained(model, **options), []
    found, report = auto.from_pretrained(model, output_loading_info=True, **options)
    return found, sorted(report["missing_keys"])


def _kind(config: Any) -> str:
    """The kind of a model of transformers, in small letters; "" without a configuration."""
    return str(getattr(config, "model_type", "")).lower()


def _is_known(config: Any) -> bool:
    """Whether transformers has the model itself."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    return type(config) in MODEL_FOR_MASKED_LM_MAPPING


def reason(error: Exception, trusted: bool) -> str:
    """Why a model cannot be read."""
    if not trusted and ("trust_remote_code" in str(error) or "custom code" in str(error)):
        return "it comes with code of its own; trust_remote_code (--trust-remote-code) runs it, if you trust it"
    return one_line(error)[:300]


def longest_call(config: Any, tokenizer: Tokenizer) -> int | None:
    """Largest number of ids in a call."""
    names = ("max_position_embeddings", "max_sequence_length", "model_length", "n_positions")
    most = next((int(getattr(config, name)) for name in names if isinstance(getattr(config, name, None), int)), None)
    if most is not None and config.model_type in _OFFSET and getattr(config, "position_embedding_type", "absolute") == "absolute":
        most -= (getattr(config, "pad_token_id", None) or 0) + 1
    stated = getattr(getattr(tokenizer, "_tokenizer", None), "model_max_length", None)
    known = [one for one in (most, stated) if one is not None and one < 10**9]
    return min(known) if known else None


def _checked_mask(where: str, value: Any) -> int | None:
    """The id of the mask token, if there is one."""
    return None if value is None else checked_integer(f"{where}: mask_id", value, 0)


def _tried(network: Any, where: str, device: torch.device, values: dict[str, Any]) -> int:
    """Number of symbols, from a call with two tokens, one of them masked; ValueError if that fails."""
    mask = values["mask_id"]
    ids = torch.tensor([[0, mask or 0]], device=device)
    try:
        with torch.inference_mode():
            out = network.logits(ids, torch.full((1,), 0.5, device=device))
    except Exception as error:
        given = "two tokens" if mask is None else f"two tokens, of which {mask} is the mask (--mask-id),"
        raise ValueError(f"{where}: logits of {given} fail ({one_line(error)[:300]}); expected logits(ids, noise)") from error
    if not isinstance(out, torch.Tensor) or out.ndim != 3 or tuple(out.shape[:2]) != (1, 2):
        what = f"shape {tuple(out.shape)}" if isinstance(out, torch.Tensor) else type(out).__name__
        raise ValueError(f"{where}: logits of ids (1, 2) give {what}; expected a tensor (1, 2, vocab)")
    return int(out.shape[2])


def _check_sizes(where: str, size: int, tokenizer: Tokenizer | None) -> None:
    """ValueError if the tokens of a tokenizer are not those of the model. Models often have some rows more than tokens."""
    if tokenizer is not None and not 0.9 * size <= tokenizer.size <= size:
        raise ValueError(
            f"{where} has {size} tokens, but its tokenizer {tokenizer.size}; name the right one (--tokenizer), or split texts "
            f"into the tokens of vocab.txt by a regular expression (--split {shown('smiles')}, 'characters', ..)"
        )
