"""Language models, and encoders of texts and sentences, from folders, hubs, files of this
package, and user-defined functions.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
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
from uturn.networks.texts.masked_transformer import MaskedTransformer
from uturn.networks.texts.tokenizers import (
    PretrainedTokenizer,
    Tokenizer,
    Vocabulary,
    load_tokenizer,
)
from uturn.sources.embedded_text import model_file

FORMS = "'module:function', a function without arguments that returns the network"
Head = Literal["masked", "encoder", "causal", "classifier"]
Config = Any  # a configuration of transformers, whose attributes depend on the kind of the model
_CLASSES = {
    "masked": "AutoModelForMaskedLM",
    "encoder": "AutoModel",
    "causal": "AutoModelForCausalLM",
    "classifier": "AutoModelForSequenceClassification",
}
_CAUSAL = ("ForCausalLM", "LMHeadModel")  # suffixes of classes that predict the next token
# Attributes of a configuration that may hold the largest number of ids in a call.
_LENGTHS = ("max_position_embeddings", "max_sequence_length", "model_length", "n_positions")
_NO_LENGTH = 10**9  # from here on, tokenizers of transformers mean no limit
# Kinds whose position embeddings begin after the padding token.
_OFFSET = ("roberta", "xlm-roberta", "camembert", "esm")
_TRUST = (
    "the model has its own code; trust_remote_code (--trust-remote-code) runs this code, if you"
    " trust it"
)


@dataclass(frozen=True)
class OutputForm:
    """The form of a denoiser's output, as in `TokenNetwork`; None where it is not stated."""

    shift: bool | None = None
    time: str | None = None
    output: str | None = None
    corruption: str | None = None
    mask_id: int | None = None

    def or_else(self, other: OutputForm) -> OutputForm:
        """This form, with the entries of another one where it states nothing."""
        entries = {}
        for name, value in vars(self).items():
            entries[name] = getattr(other, name) if value is None else value
        return OutputForm(**entries)

    def checked(self, where: str) -> OutputForm:
        """The form; ValueError for entries without a meaning."""
        corruption = "masking" if self.corruption == "mask" else self.corruption
        _check_choice(f"{where}: time", self.time, ("none", "sigma"))
        _check_choice(f"{where}: output", self.output, ("logits", "ratios"))
        _check_choice(f"{where}: corruption", corruption, tuple(CHANNELS))
        expect(isinstance(self.shift, bool), f"{where}: shift", self.shift, "True or False")
        mask = self.mask_id
        if mask is not None:
            mask = checked_integer(f"{where}: mask_id", mask, 0)
        return replace(self, corruption=corruption, mask_id=mask)


def _check_choice(where: str, value: str | None, choices: tuple[str, ...]) -> None:
    expect(value in choices, where, value, f"one of {', '.join(map(repr, choices))}")


_DEFAULT_FORM = OutputForm(False, "none", "logits", "masking")
# What the configuration of a model does not state, by `model_type`.
_FORMS = {
    "mdlm": OutputForm(time="sigma"),  # arXiv:2406.07524
    "llada": OutputForm(),  # arXiv:2502.09992
    "dream": OutputForm(shift=True),  # arXiv:2508.15487
}
_MASK_IS_LAST = ("mdlm",)  # kinds whose last id is the mask


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
        for name in (self.model, self.tokenizer):
            if name is None:
                continue
            place = Path(name)
            if place.is_dir():
                paths += sorted(place.glob("*"))
                paths += sorted(place.glob("*/*.json"))
            else:
                paths.append(place)
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
        return _read(self).model


def _identity(model: LanguageModel, files: Sequence[Path]) -> str:
    """The fingerprint of a model, and the digests of its files with options."""
    tables = [path for path in files if path.suffix == ".json" and path.is_file()]
    return " ".join([model.fingerprint(), *(digest_of_file(str(path)) for path in tables)])


def load_language_model(
    model: str,
    **options: Any,  # fields of `TextModel`
) -> LanguageModel:
    """A language model that denoises tokens; `options` are those of
    `uturn.networks.texts.language_files.TextModel`.
    """
    return TextModel(model, "masked", **options).load()


def _denoiser(chosen: TextModel) -> LanguageModel:
    """A language model that denoises tokens, with the form of its output."""
    where = chosen.where
    loaded = _read(replace(chosen, head="masked"))
    language = loaded.model
    options = OutputForm(
        chosen.shift, chosen.time, chosen.output, chosen.corruption, chosen.mask_id
    )
    form = options.or_else(loaded.form).or_else(_DEFAULT_FORM).checked(where)
    size = _num_symbols(language, where, form.mask_id)
    expected = (
        "an id, but its tokenizer has no mask token; a causal model cannot unmask, others need the"
        " id (--mask-id)"
    )
    has_mask = form.corruption != "masking" or form.mask_id is not None
    expect(has_mask, f"{where}: mask_id", form.mask_id, expected)
    _check_sizes(where, size, language.tokenizer, 0.9)
    forbidden = set[int]()
    if language.tokenizer is not None:
        forbidden.update(language.tokenizer.special)
    if form.mask_id is not None and form.corruption != "uniform":
        forbidden.add(form.mask_id)
    return replace(
        language,
        vocab_size=size,
        forbidden=tuple(sorted(token for token in forbidden if token < size)),
        **vars(form),
    )


def _form_of_attributes(network: object, takes_ids: bool) -> OutputForm:
    """The form that the attributes of a network state. Of a torch module that takes ids, only
    `mask_id` is read, as its other attributes may be layers.
    """
    if takes_ids:
        return OutputForm(mask_id=getattr(network, "mask_id", None))
    return OutputForm(**{name: getattr(network, name, None) for name in vars(OutputForm())})


def is_packaged(model: str) -> bool:
    """Whether a name is the embedded model or a file of this package."""
    return model == "embedded" or model.endswith(".safetensors")


@dataclass(frozen=True)
class _Network:
    """A network that has been loaded on the CPU."""

    network: Any  # a torch module, or a `TokenNetwork`
    tokenizer: Tokenizer | None = None
    config: Config = None
    """Of a model of transformers."""


def _network(chosen: TextModel) -> _Network:
    """The network that a name gives, with its own tokenizer."""
    where = chosen.where
    model = chosen.model
    if is_packaged(model):
        path = model_file() if model == "embedded" else model
        packaged = load_network(path, "masked_transformer")
        assert isinstance(packaged, MaskedTransformer)
        characters: str | None = packaged.options["characters"]
        if characters is None:
            return _Network(packaged)
        return _Network(packaged, Vocabulary(characters, "characters"))
    function = chosen.own_code()
    if function is None:
        config = read_config(model, where, chosen.trust_remote_code, chosen.model_type)
        return _Network(_pretrained(chosen, config), None, config)
    with noted(where):
        network = function()
    if chosen.head == "masked":
        fits = callable(getattr(network, "logits", None))
        expected = "a TokenNetwork of uturn.networks, with a method logits"
    else:
        fits = isinstance(network, torch.nn.Module)
        expected = "a torch.nn.Module that takes ids"
    expect(fits, f"{where}: what it gives", network, expected)
    tokenizer = getattr(network, "tokenizer", None)
    fits = isinstance(tokenizer, Vocabulary | PretrainedTokenizer | None)
    expected = "a Vocabulary or a PretrainedTokenizer of uturn.networks, or None"
    expect(fits, f"{where}: tokenizer", tokenizer, expected)
    return _Network(network, tokenizer)


@dataclass(frozen=True)
class _Read:
    """A network on its device with its tokenizer."""

    model: LanguageModel
    form: OutputForm
    """As the network, or the configuration of a model of transformers, states it."""


def _read(chosen: TextModel) -> _Read:
    where = chosen.where
    device = checked_device(chosen.device)
    loaded = _network(chosen)
    network = loaded.network
    config = loaded.config
    tokenizer = loaded.tokenizer
    name = chosen.tokenizer
    if name is None and config is not None:
        name = chosen.model
    if name is not None:
        tokenizer = load_tokenizer(name, chosen.split, chosen.trust_remote_code)
    takes_ids = chosen.head != "masked" or not is_import_path(chosen.model)
    form = _form_of_attributes(network, takes_ids)
    length = getattr(network, "length", None)
    if config is not None and tokenizer is not None:
        form = _stated_form(config, tokenizer)
        length = _stated_length(config, tokenizer)
    if isinstance(network, torch.nn.Module):
        network = network.to(device, getattr(torch, chosen.dtype)).eval().requires_grad_(False)
        identity = fingerprint(network)
    else:
        identity = ""
        if hasattr(network, "fingerprint"):
            identity = str(network.fingerprint())
    if length is not None:
        length = checked_integer(f"{where}: length", length, 1)
    language = LanguageModel(
        network,
        tokenizer=tokenizer,
        length=length,
        device=device,
        identity=identity,
        description=Path(chosen.model).name or chosen.model,
        takes_ids=takes_ids,
    )
    if config is not None and chosen.head != "masked":
        # Raised by a model's own code.
        with suppress(AttributeError, NotImplementedError, TypeError):
            size = int(language.network.get_input_embeddings().num_embeddings)
            _check_sizes(where, size, tokenizer)
    return _Read(language, form)


def read_config(model: str, where: str, trusted: bool, kind: str | None = None) -> Config:
    """The configuration of a model of transformers; `kind`, such as "bert", is for a config.json
    without `model_type`.
    """
    transformers = library("transformers", where, "text")
    check_name(model, where)
    expect(
        kind is None or kind in transformers.CONFIG_MAPPING,
        "model_type",
        kind,
        "a kind of models of transformers, such as bert or roberta",
    )
    table: dict[str, Any] = {}
    try:
        with without_lists(transformers.utils.logging):
            table = transformers.PretrainedConfig.get_config_dict(model)[0]
            _check_entry(table, "architectures", list)
            _check_entry(table, "auto_map", dict)
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


def _check_entry(table: Mapping[str, object], name: str, form: type) -> None:
    """ValueError for an entry of a configuration that has another type."""
    value = table.get(name)
    expect(not value or isinstance(value, form), name, value, f"a {form.__name__}")


def check_name(model: str, where: str) -> None:
    """ValueError if there is neither such a folder nor such a model on a hub, which is asked
    once; for damaged folders too.
    """
    if model and Path(model).is_dir():
        return
    expect(
        re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model),
        where,
        "no such folder",
        f"a folder that transformers reads, the name of a model on a hub, or {FORMS}",
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


def _architectures(config: Config) -> list[str]:
    return list(map(str, getattr(config, "architectures", None) or ()))


def _pretrained(chosen: TextModel, config: Config) -> torch.nn.Module:
    """A model of transformers; for head "encoder", only the encoder of an encoder-decoder model."""
    where = chosen.where
    head = chosen.head
    has_decoder = bool(getattr(config, "is_encoder_decoder", False))
    class_name = _CLASSES[head]
    if head == "masked":
        class_name = _class_of_masked(chosen, config)
    expect(
        head != "causal" or not has_decoder,
        f"{where}: is_encoder_decoder",
        has_decoder,
        "a causal or a masked model",
    )
    loaded = _from_pretrained(chosen, class_name, config)
    _warn_of_unused_layers(where, loaded)
    missing = loaded.missing
    if head != "classifier":  # the weights of a pooler and of a decoder are not used
        missing = [key for key in missing if "pooler" not in key]
        if has_decoder:
            missing = [key for key in missing if not key.startswith("decoder.")]
    expect(
        not missing,
        f"{where}: missing weights",
        missing,
        f"all weights of a trained {type(loaded.module).__name__}",
    )
    if has_decoder and head == "encoder":
        encoder: torch.nn.Module = loaded.module.get_encoder()
        return encoder
    module: torch.nn.Module = loaded.module
    return module


def _class_of_masked(chosen: TextModel, config: Config) -> str:
    """The class of transformers of a masked model; ValueError for a causal one, and for code of
    its own that is not trusted.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    own_classes = getattr(config, "auto_map", None) or {}
    trusted = chosen.trust_remote_code
    is_trusted = not own_classes or trusted or type(config) in MODEL_FOR_MASKED_LM_MAPPING
    expect(is_trusted, f"{chosen.where}: trust_remote_code", trusted, f"True, as {_TRUST}")
    causal = [name for name in _architectures(config) if name.endswith(_CAUSAL)]
    expected = "a masked model: a causal model predicts the next token only"
    expect(own_classes or not causal, f"{chosen.where}: architectures", causal, expected)
    return next((name for name in _CLASSES.values() if name in own_classes), _CLASSES["masked"])


@dataclass(frozen=True)
class _Pretrained:
    """A module that transformers has loaded."""

    module: Any  # of any class of transformers
    missing: list[str]
    """Names of weights that its files do not have, sorted."""
    unexpected: list[str]
    """Names of weights in its files that it does not have, sorted."""


def _from_pretrained(chosen: TextModel, class_name: str, config: Config) -> _Pretrained:
    import transformers

    has_report = model_type(config) not in PLAIN
    options: dict[str, bool] = {"output_loading_info": True} if has_report else {}
    logging = transformers.utils.logging
    try:
        with without_bars(logging), without_lists(logging):
            loaded = getattr(transformers, class_name).from_pretrained(
                chosen.model,
                config=config,
                trust_remote_code=chosen.trust_remote_code,
                weights_only=True,  # pickles are not run
                **options,
            )
    except Exception as error:
        reason = _reason(error, chosen.trust_remote_code)
        raise ValueError(
            f"{chosen.where} cannot be read as a {chosen.head} model of texts ({reason})"
        ) from None
    if not has_report:
        return _Pretrained(loaded, [], [])
    module, report = loaded
    return _Pretrained(module, sorted(report["missing_keys"]), sorted(report["unexpected_keys"]))


def _warn_of_unused_layers(where: str, loaded: _Pretrained) -> None:
    """Warn if a file has weights of more layers than the configuration says."""
    in_layers = re.compile(r"\.\d+\.(.+)").findall  # names behind the number of a layer
    names: set[str] = set()
    for key in loaded.module.state_dict():
        names.update(in_layers(key))
    beyond = [key for key in loaded.unexpected if names.intersection(in_layers(key))]
    if beyond:
        finding = (
            f"{len(beyond)} weights are of layers that its config.json does not have and are left"
            f" out, such as {beyond[0]}"
        )
        warnings.warn(f"{where}: {finding}", stacklevel=3)


def _reason(error: Exception, trusted: bool) -> str:
    """An error of transformers in one line."""
    if not trusted and re.search("trust_remote_code|custom code", str(error)):
        return _TRUST
    return one_line(error)


def _stated_form(config: Config, tokenizer: Tokenizer) -> OutputForm:
    """The form of the output that a configuration of transformers states."""
    kind = model_type(config)
    if kind in _MASK_IS_LAST:
        mask_id: int | None = int(getattr(config, "vocab_size", tokenizer.size)) - 1
    else:
        mask_id = getattr(config, "mask_token_id", None)
        if mask_id is None:
            mask_id = tokenizer.mask_id
    return replace(_FORMS.get(kind, OutputForm()), mask_id=mask_id)


def _stated_length(config: Config, tokenizer: Tokenizer) -> int | None:
    """The largest number of ids in a call, of the configuration and the tokenizer; None for no
    limit.
    """
    lengths = (_num_positions(config), getattr(tokenizer, "longest", None))
    stated = [length for length in lengths if length is not None and length < _NO_LENGTH]
    return min(stated, default=None)


def _num_positions(config: Config) -> int | None:
    numbers = [getattr(config, name, None) for name in _LENGTHS]
    stated = [int(number) for number in numbers if isinstance(number, int)]
    if not stated:
        return None
    is_absolute = getattr(config, "position_embedding_type", "absolute") == "absolute"
    if config.model_type in _OFFSET and is_absolute:
        return stated[0] - (getattr(config, "pad_token_id", None) or 0) - 1
    return stated[0]


def _num_symbols(model: LanguageModel, where: str, mask: int | None) -> int:
    """Number of symbols, from a call with two tokens, one of them masked; ValueError if that
    fails.
    """
    ids = torch.tensor([[0, mask or 0]], device=model.device)
    is_token = torch.ones_like(ids) > 0
    noise = torch.full((1,), 0.5, device=model.device)
    tokens = "two tokens"
    if mask is not None:
        tokens = f"two tokens, of which {mask} is the mask (--mask-id),"
    with reading(f"{where}: logits of {tokens}", "expected logits(ids, noise)", "text"):
        return model.logits(ids, is_token, noise).shape[2]


def _check_sizes(where: str, size: int, tokenizer: Tokenizer | None, least: float = 0) -> None:
    """ValueError if the numbers of tokens of tokenizer and model do not match. Models often have
    a few more rows than tokens.
    """
    if tokenizer is None:
        return
    way_out = (
        "name the right one (--tokenizer), or split texts into the tokens of vocab.txt (--split"
        " smiles, characters, ..)"
    )
    expect(
        least * size <= tokenizer.size <= size,
        f"{where}: tokens of its tokenizer",
        tokenizer.size,
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
    pooling: str = "mean"
    """"mean" over all tokens, including prefix and suffix; "cls", the first token; "max" over
    tokens; "lasttoken"."""
    prompt: str = ""
    """Text before each text."""
    lower: bool = False
    """Whether texts are converted to lower case first."""

    def embed(self, texts: np.ndarray, batch_size: int) -> np.ndarray:
        """Embeddings divided by their norm, float64 (count, width), of texts as ids int64
        (count, length).
        """
        table = self.model.rows(texts, batch_size, self._pooled)
        norms = np.linalg.norm(table, axis=1, keepdims=True)
        embeddings: np.ndarray = table / np.maximum(norms, np.finfo(float).tiny)
        return embeddings

    def _pooled(
        self,
        output: Any,  # noqa: ANN401 - of any encoder
        real: torch.Tensor,
    ) -> torch.Tensor:
        if isinstance(output, tuple | list):
            output = getattr(output, "last_hidden_state", output[0])
        states: torch.Tensor = getattr(output, "last_hidden_state", output)
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
    modules: Any,  # noqa: ANN401 - as a file says
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


def _pooling(config: Any) -> str:  # noqa: ANN401 - as a file says
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


def _json(model: str, name: str, where: str) -> Any:  # noqa: ANN401 - as the file says
    """The content of a file of a model in a folder or on a hub; None if there is none."""
    check_name(model, where)
    with reading(f"{where}: {name}", "download the model again, give its folder", "text"):
        from transformers.utils import cached_file  # type: ignore[attr-defined]

        path = cached_file(model, name, _raise_exceptions_for_missing_entries=False)
        if path is None:
            return None
        return read_table(path)
