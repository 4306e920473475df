"""Language models, and encoders of texts and sentences, from folders, hubs, files of this
package, and user-defined functions.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from uturn.core.caches import cached_while_unchanged, digest_of_file
from uturn.core.checks import checked_integer, expect
from uturn.core.errors import noted
from uturn.core.files import read_table
from uturn.core.imports import import_function, is_import_path
from uturn.core.inputs import Input
from uturn.core.messages import one_line
from uturn.networks.files import fingerprint, load_network
from uturn.networks.libraries import (
    check_hub,
    checked_device,
    library,
    reading,
    without_bars,
    without_lists,
)
from uturn.networks.texts.language import CHANNELS, PLAIN, LanguageModel, model_type
from uturn.networks.texts.tokenizers import Tokenizer, Vocabulary, load_tokenizer
from uturn.sources.embedded_text import model_file

FORMS = "'module:function', a function without arguments that returns the network"
Head = Literal["masked", "encoder", "causal", "classifier"]
_CLASSES = {
    "masked": "AutoModelForMaskedLM",
    "encoder": "AutoModel",
    "causal": "AutoModelForCausalLM",
    "classifier": "AutoModelForSequenceClassification",
}
_KNOWN = {"time": ("none", "sigma"), "output": ("logits", "ratios"), "corruption": tuple(CHANNELS)}
# Properties of the output that the configuration of a model does not state, by `model_type`.
_KINDS: dict[str, dict[str, Any]] = {
    "mdlm": {"time": "sigma", "mask_id": "last"},  # arXiv:2406.07524
    "llada": {},  # arXiv:2502.09992
    "dream": {"shift": True},  # arXiv:2508.15487
}
_CAUSAL = ("ForCausalLM", "LMHeadModel")  # suffixes of classes that predict the next token
# Kinds whose position embeddings begin after the padding token.
_OFFSET = ("roberta", "xlm-roberta", "camembert", "esm")
_TRUST = (
    "the model has its own code; trust_remote_code (--trust-remote-code) runs this code, if you"
    " trust it"
)


@dataclass(frozen=True)
class TextModel(Input):
    """A network that reads texts, by name, with the options that load it.

    `model`: "embedded"; a folder or hub id of a model of transformers; a file of `uturn.networks`
    with a MaskedTransformer; or "module:function", which returns a `TokenNetwork` for the head
    "masked", and otherwise a torch module that takes ids, with optional attributes `tokenizer` and
    `length`. `head`: "masked", a model that denoises tokens; "encoder", hidden states (of the
    encoder of an encoder-decoder model); "causal", logits of the next token; "classifier", logits
    of the classes of a text. `tokenizer`, `split`: as in `load_tokenizer`; by default the tokenizer
    of the model. `shift`, `time`, `output`, `corruption`, `mask_id`: as in `TokenNetwork`, for the
    head "masked"; by default as stated by the model or known for its kind. `trust_remote_code`: run
    the own code of a model of transformers (MDLM, LLaDA, Dream). `model_type`: its kind, as in
    `read_config`. `dtype`: precision. `device`: by default "cuda" if available.
    """

    model: str
    head: Head = "encoder"
    tokenizer: str | None = None
    split: str | None = None
    shift: bool | None = None
    time: str | None = None
    output: str | None = None
    corruption: str | None = None
    mask_id: int | None = None
    model_type: str | None = None
    trust_remote_code: bool = False
    dtype: str = "float32"
    device: str | None = None

    @property
    def where(self) -> str:
        """How errors name the model: as the option that gives it, "classifier = .." or "model =
        ..".
        """
        return f"{'classifier' if self.head == 'classifier' else 'model'} = {self.model!r}"

    def files(self) -> list[Path]:
        paths: list[Path] = []
        for place in (Path(name) for name in (self.model, self.tokenizer) if name is not None):
            paths += (
                [*sorted(place.glob("*")), *sorted(place.glob("*/*.json"))]
                if place.is_dir()
                else [place]
            )
        return paths

    def own_code(self) -> Callable[[], object] | None:
        if not is_import_path(self.model):
            return None
        return import_function(self.model, self.where, FORMS)

    def fingerprint(self) -> str:
        """Of weights, tokenizer and form of the output; and of the files with options of the
        model, such as its pooling.
        """
        return _identity(self.load(), self.files())

    @cached_while_unchanged(maxsize=4)
    def load(self) -> LanguageModel:
        """The network, loaded once; ValueError if it is not of this kind, or its tokenizer does
        not match.
        """
        fits = not is_packaged(self.model) or self.head in ("masked", "encoder")
        expect(
            fits,
            f"{self.where}: kind of model",
            "masked",
            f"{self.head!r}, such as a model of transformers",
        )
        if self.head == "masked" or is_packaged(self.model):
            return _denoiser(self)
        return _read(self)[0]


def _identity(model: LanguageModel, files: Sequence[Path]) -> str:
    """The fingerprint of a model, and the digests of its files with options."""
    tables = [path for path in files if path.suffix == ".json" and path.is_file()]
    return " ".join([model.fingerprint(), *(digest_of_file(str(path)) for path in tables)])


def load_language_model(model: str, **options: Any) -> LanguageModel:
    """A language model that denoises tokens; `options` are those of
    `uturn.networks.texts.language_files.TextModel`.
    """
    return TextModel(model, "masked", **options).load()


def _denoiser(chosen: TextModel) -> LanguageModel:
    """A language model that denoises tokens, with the properties of its output."""
    where = chosen.where
    language, stated = _read(replace(chosen, head="masked"))
    defaults = {
        "shift": False,
        "time": "none",
        "output": "logits",
        "corruption": "masking",
        "mask_id": None,
    }
    # Other attributes of a module may be layers.
    told = ("mask_id",) if language.takes_ids else tuple(defaults)
    values: dict[str, Any] = {}
    for name, default in defaults.items():
        of_network = getattr(language.network, name, None) if name in told else None
        given = (getattr(chosen, name), stated.get(name, of_network), default)
        values[name] = next((value for value in given if value is not None), None)
    values["corruption"] = {"mask": "masking"}.get(values["corruption"], values["corruption"])
    for name, known in _KNOWN.items():
        expect(
            values[name] in known,
            f"{where}: {name}",
            values[name],
            f"one of {', '.join(map(repr, known))}",
        )
    mask = values["mask_id"]
    if mask is not None:
        values["mask_id"] = mask = checked_integer(f"{where}: mask_id", mask, 0)
    size = _num_symbols(language, where, mask)
    words = (
        "an id, but its tokenizer has no mask token; a causal model cannot unmask, others need the"
        " id (--mask-id)"
    )
    expect(values["corruption"] != "masking" or mask is not None, f"{where}: mask_id", mask, words)
    _check_sizes(where, size, language.tokenizer, 0.9)
    forbidden = set(() if language.tokenizer is None else language.tokenizer.special)
    forbidden |= set() if mask is None or values["corruption"] == "uniform" else {mask}
    return replace(
        language,
        vocab_size=size,
        forbidden=tuple(sorted(token for token in forbidden if token < size)),
        **values,
    )


def is_packaged(model: str) -> bool:
    return model == "embedded" or model.endswith(".safetensors")


def _read(chosen: TextModel) -> tuple[LanguageModel, dict[str, Any]]:
    """A network on its device with its tokenizer, and the stated properties of its output."""
    model, head, where, tokenizer, trusted = (
        chosen.model,
        chosen.head,
        chosen.where,
        chosen.tokenizer,
        chosen.trust_remote_code,
    )
    place, config = checked_device(chosen.device), None
    made: Tokenizer | None = None
    if is_packaged(model):
        network: Any = load_network(
            model_file() if model == "embedded" else model, "masked_transformer"
        )
        characters = network.options["characters"]
        made = None if characters is None else Vocabulary(characters, "characters")
    elif (function := chosen.own_code()) is not None:
        with noted(where):
            network = function()
        fits = (
            callable(getattr(network, "logits", None))
            if head == "masked"
            else isinstance(network, torch.nn.Module)
        )
        kind = (
            "TokenNetwork of uturn.networks, with a method logits"
            if head == "masked"
            else "torch.nn.Module that takes ids"
        )
        expect(fits, f"{where}: what it gives", network, f"a {kind}")
        made = getattr(network, "tokenizer", None)
    else:
        config = read_config(model, where, trusted, chosen.model_type)
        network = _pretrained(model, head, where, config, trusted)
        tokenizer = tokenizer or model
    if tokenizer is not None:
        made = load_tokenizer(tokenizer, chosen.split, trusted)
    stated = {} if config is None or made is None else _stated(config, made)
    length = stated.pop("length", getattr(network, "length", None))
    if isinstance(network, torch.nn.Module):
        network = network.to(place, getattr(torch, chosen.dtype)).eval().requires_grad_(False)
        identity = fingerprint(network)
    else:
        identity = str(getattr(network, "fingerprint", lambda: "")())
    language = LanguageModel(
        network,
        tokenizer=made,
        length=None if length is None else checked_integer(f"{where}: length", length, 1),
        device=place,
        identity=identity,
        description=Path(model).name or model,
        takes_ids=head != "masked" or not is_import_path(model),
    )
    if config is not None and head != "masked":
        # Raised by a model's own code.
        with suppress(AttributeError, NotImplementedError, TypeError):
            _check_sizes(where, int(language.network.get_input_embeddings().num_embeddings), made)
    return language, stated


def read_config(model: str, where: str, trusted: bool, kind: str | None = None) -> Any:
    """The configuration of a model of transformers; `kind`, such as "bert", is for a config.json
    without `model_type`.
    """
    transformers = library("transformers", where, "text")
    check_name(model, where)
    is_known = kind is None or kind in transformers.CONFIG_MAPPING
    expect(
        is_known, "model_type", kind, "a kind of models of transformers, such as bert or roberta"
    )
    table: dict[str, Any] = {}
    try:
        with without_lists(transformers.utils.logging):
            table = transformers.PretrainedConfig.get_config_dict(model)[0]
            for name, form in (("architectures", list), ("auto_map", dict)):
                expect(
                    isinstance(table.get(name) or form(), form),
                    name,
                    table.get(name),
                    f"a {form.__name__}",
                )
            if kind is not None and "model_type" not in table:
                return transformers.AutoConfig.for_model(kind, **table)
            return transformers.AutoConfig.from_pretrained(model, trust_remote_code=trusted)
    except Exception as error:
        if table and kind is None and "model_type" not in table:
            missing = 'its config.json lacks the line "model_type", such as "model_type": "bert"'
            raise ValueError(
                f"{where}: {missing}; name the kind of model (model_type, --model-type bert)"
            ) from None
        raise ValueError(f"{where} cannot be read ({_reason(error, trusted)})") from None


def check_name(model: str, where: str) -> None:
    """ValueError if there is neither such a folder nor such a model on a hub, which is asked
    once; for damaged folders too.
    """
    if not model or not Path(model).is_dir():
        is_name, known = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model), "the name of a model on a hub"
        expect(
            is_name,
            where,
            "no such folder",
            f"a folder that transformers reads, {known}, or {FORMS}",
        )
        check_hub(model, "config.json")


def kind_of(
    model: str, where: str, trusted: bool, kind: str | None = None
) -> Literal["causal", "masked"]:
    """Whether a model of transformers predicts the next token or masked ones; ValueError if its
    configuration does not say so.
    """
    names = _architectures(read_config(model, where, trusted, kind))
    if any(name.endswith("ForMaskedLM") for name in names):
        return "masked"
    expected = (
        "a model ..ForCausalLM or ..ForMaskedLM, or likelihood = 'causal' or 'masked' for a model"
        " with its own code"
    )
    is_causal = any(name.endswith(_CAUSAL) for name in names)
    expect(is_causal, f"{where}: architectures in its config.json", ", ".join(names), expected)
    return "causal"


def _architectures(config: Any) -> list[str]:
    return list(map(str, getattr(config, "architectures", None) or ()))


def _pretrained(model: str, head: Head, where: str, config: Any, trusted: bool) -> torch.nn.Module:
    """A model of transformers; for head "encoder", only the encoder of an encoder-decoder model."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    own, has_decoder = (
        getattr(config, "auto_map", None) or {},
        bool(getattr(config, "is_encoder_decoder", False)),
    )
    name = _CLASSES[head]
    if head == "masked":
        name = next((name for name in _CLASSES.values() if name in own), name)
        is_trusted = not own or trusted or type(config) in MODEL_FOR_MASKED_LM_MAPPING
        expect(is_trusted, f"{where}: trust_remote_code", trusted, f"True, as {_TRUST}")
        causal = [name for name in _architectures(config) if name.endswith(_CAUSAL)]
        expected = "a masked model: a causal model predicts the next token only"
        expect(own or not causal, f"{where}: architectures", causal, expected)
    expect(
        head != "causal" or not has_decoder,
        f"{where}: is_encoder_decoder",
        has_decoder,
        "a causal or a masked model",
    )
    # Pickles are not run.
    options = {"config": config, "trust_remote_code": trusted, "weights_only": True}
    if reports := model_type(config) not in PLAIN:
        options["output_loading_info"] = True
    logging = transformers.utils.logging
    try:
        with without_bars(logging), without_lists(logging):
            read = getattr(transformers, name).from_pretrained(model, **options)
    except Exception as error:
        raise ValueError(
            f"{where} cannot be read as a {head} model of texts ({_reason(error, trusted)})"
        ) from None
    module, missing = (read[0], sorted(read[1]["missing_keys"])) if reports else (read, [])
    in_layers = re.compile(r"\.\d+\.(.+)").findall  # names behind the number of a layer
    of_layers = {name for key in module.state_dict() for name in in_layers(key)}
    if beyond := [
        key
        for key in sorted(read[1]["unexpected_keys"] if reports else ())
        if of_layers & {*in_layers(key)}
    ]:
        said = (
            f"{len(beyond)} weights are of layers that its config.json does not have and are left"
            f" out, such as {beyond[0]}"
        )
        warnings.warn(f"{where}: {said}", stacklevel=2)
    # Of all others, the weights of an encoder's pooler and of a decoder are not used.
    if head != "classifier":
        missing = [
            key
            for key in missing
            if "pooler" not in key and not (has_decoder and key.startswith("decoder."))
        ]
    expect(
        not missing,
        f"{where}: missing weights",
        missing,
        f"all weights of a trained {type(module).__name__}",
    )
    return module.get_encoder() if has_decoder and head == "encoder" else module


def _reason(error: Exception, trusted: bool) -> str:
    return (
        _TRUST
        if not trusted and re.search("trust_remote_code|custom code", str(error))
        else one_line(error)
    )


def _stated(config: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """Properties of the output stated by a model of transformers, and the largest number of ids
    in a call.
    """
    stated = dict(_KINDS.get(model_type(config), {}))
    if stated.get("mask_id") == "last":
        stated["mask_id"] = int(getattr(config, "vocab_size", tokenizer.size)) - 1
    else:
        own = getattr(config, "mask_token_id", None)
        stated["mask_id"] = tokenizer.mask_id if own is None else own
    names = ("max_position_embeddings", "max_sequence_length", "model_length", "n_positions")
    most = next(
        (
            int(getattr(config, name))
            for name in names
            if isinstance(getattr(config, name, None), int)
        ),
        None,
    )
    if (
        most is not None
        and config.model_type in _OFFSET
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
    ):
        most -= (getattr(config, "pad_token_id", None) or 0) + 1
    lengths = (most, getattr(tokenizer, "longest", None))
    stated["length"] = min(
        (length for length in lengths if length is not None and length < 10**9), default=None
    )
    return stated


def _num_symbols(model: LanguageModel, where: str, mask: int | None) -> int:
    """Number of symbols, from a call with two tokens, one of them masked; ValueError if that
    fails.
    """
    ids = torch.tensor([[0, mask or 0]], device=model.device)
    tokens = (
        "two tokens" if mask is None else f"two tokens, of which {mask} is the mask (--mask-id),"
    )
    with reading(f"{where}: logits of {tokens}", "expected logits(ids, noise)", "text"):
        return model.logits(
            ids, torch.ones_like(ids) > 0, torch.full((1,), 0.5, device=model.device)
        ).shape[2]


def _check_sizes(where: str, size: int, tokenizer: Tokenizer | None, least: float = 0) -> None:
    """ValueError if the numbers of tokens of tokenizer and model do not match. Models often have
    a few more rows than tokens.
    """
    fits = tokenizer is None or least * size <= tokenizer.size <= size
    way_out = (
        "name the right one (--tokenizer), or split texts into the tokens of vocab.txt (--split"
        " smiles, characters, ..)"
    )
    expect(
        fits,
        f"{where}: tokens of its tokenizer",
        getattr(tokenizer, "size", 0),
        f"{size}, as the model has; {way_out}",
    )


_POOLINGS = ("mean", "cls", "max", "lasttoken")
_POOLING_NAMES = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}
"""Names of poolings in files of sentence-transformers."""
_MODULES = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True, eq=False)
class SentenceEncoder:
    """An encoder with a pooling of its last hidden states (arXiv:1908.10084)."""

    model: LanguageModel
    # Over all tokens, including prefix and suffix; "cls", the first token; "max" over tokens;
    # "lasttoken".
    pooling: str = "mean"
    prompt: str = ""  # text before each text
    lower: bool = False  # whether texts are converted to lower case first

    def embed(self, texts: np.ndarray, batch_size: int) -> np.ndarray:
        """Embeddings divided by their norm, float64 (count, width), of texts as ids int64
        (count, length).
        """
        table = self.model.rows(texts, batch_size, self._pooled)
        return table / np.maximum(
            np.linalg.norm(table, axis=1, keepdims=True), np.finfo(float).tiny
        )

    def _pooled(self, output: Any, real: torch.Tensor) -> torch.Tensor:
        states: Any = getattr(
            output, "last_hidden_state", output[0] if isinstance(output, tuple | list) else output
        )
        shape = tuple(getattr(states, "shape", ()))
        fits = len(shape) == 3 and shape[:2] == tuple(real.shape)
        expected = f"hidden states (batch, tokens, width) of {tuple(real.shape)} tokens"
        expect(fits, f"{self.model.description}: shape of the output", shape, expected)
        if self.pooling == "cls":
            return states[:, 0]
        if self.pooling == "lasttoken":
            return states[torch.arange(len(states), device=real.device), real.sum(1) - 1]
        if self.pooling == "max":
            return states.masked_fill(~real[..., None], -torch.inf).amax(1)
        weights = real[..., None].to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)


@dataclass(frozen=True)
class SentenceModel(Input):
    """A sentence encoder by name: a folder or hub id of a model of sentence-transformers, whose
    modules.json lists an encoder, a pooling and optionally a normalisation; or any other
    `TextModel`, whose hidden states are averaged over tokens.
    """

    text_model: TextModel

    def files(self) -> list[Path]:
        return self.text_model.files()

    def own_code(self) -> Callable[[], object] | None:
        return self.text_model.own_code()

    def fingerprint(self) -> str:
        return _identity(self.load().model, self.files())

    @cached_while_unchanged(maxsize=4)
    def load(self) -> SentenceEncoder:
        """The encoder; ValueError if the model cannot be read, or has parts of another kind."""
        name = self.text_model.model
        where = self.text_model.where
        modules = None
        if not (is_packaged(name) or is_import_path(name)):
            modules = _json(name, "modules.json", where)
        if modules is None:
            return SentenceEncoder(self.text_model.load())
        with reading(where, "download the model again, give its folder"):
            paths = _paths_of_parts(name, modules)
            inner = paths["Transformer"]
            folder = str(Path(name) / inner) if inner else name
            pooling = "mean"
            if "Pooling" in paths:
                pooling = _pooling(_json(name, f"{paths['Pooling']}/config.json", where))
            sizes = _json(folder, "sentence_bert_config.json", where) or {}
            prompts = _json(name, "config_sentence_transformers.json", where) or {}
            named_prompts = prompts.get("prompts") or {}
            prompt = str(named_prompts.get(prompts.get("default_prompt_name"), ""))
            longest = sizes.get("max_seq_length")
            if longest is not None:
                longest = checked_integer("max_seq_length", longest, 1)
        encoder = replace(self.text_model, model=folder).load()
        lengths = [length for length in (longest, encoder.length) if length is not None]
        encoder = replace(encoder, length=min(lengths, default=None))
        return SentenceEncoder(encoder, pooling, prompt, bool(sizes.get("do_lower_case")))


def _paths_of_parts(
    model: str,
    modules: Any,  # as a file says
) -> dict[str, str]:
    """The folders of the parts that modules.json lists, such as {"Transformer": ""}; "" is the
    folder of the model.
    """
    paths = {part["type"].rsplit(".", 1)[-1]: part["path"] for part in modules}
    fits = {"Transformer"} <= paths.keys() <= set(_MODULES)
    expect(fits, "parts of its modules.json", ", ".join(paths), ", ".join(_MODULES))
    are_inside = all(re.fullmatch(r"(?!\.)[\w.-]*", path) for path in paths.values())
    expect(
        are_inside,
        "paths of its parts",
        list(paths.values()),
        "names of folders in that of the model",
    )
    inner = paths["Transformer"]
    expect(
        not inner or Path(model, inner).is_dir(),
        "path of its encoder",
        inner,
        "a folder; none in a model on a hub",
    )
    return paths


def _pooling(config: Any) -> str:  # as a file says
    """The pooling of hidden states, one of `_POOLINGS`, that a config.json states."""
    expect(config is not None, "the config.json of its pooling", None, "a file")
    stated = config.get("pooling_mode")
    names = [stated] if isinstance(stated, str) else []
    for key, value in config.items():
        if value is True and "pooling_mode_" in key:
            names.append(key.removeprefix("pooling_mode_"))
    poolings = [_POOLING_NAMES.get(name, name) for name in names]
    expect(
        len(poolings) == 1 and poolings[0] in _POOLINGS,
        "its pooling",
        poolings,
        f"one of {', '.join(_POOLINGS)}",
    )
    return poolings[0]


def _json(model: str, name: str, where: str) -> Any:
    """The content of a file of a model in a folder or on a hub; None if there is none."""
    check_name(model, where)
    with reading(f"{where}: {name}", "download the model again, give its folder", "text"):
        from transformers.utils import cached_file  # type: ignore[attr-defined]

        path = cached_file(model, name, _raise_exceptions_for_missing_entries=False)
        return None if path is None else read_table(path)
