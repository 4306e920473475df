"""Networks that read texts: encoders and causal models of transformers, and modules of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from uturn.core.checks import one_line, shown
from uturn.core.files import cached_while_unchanged
from uturn.core.imports import is_import_path
from uturn.core.pieces import is_out_of_memory
from uturn.networks.images.pretrained import checked_device
from uturn.networks.libraries import without_bars, without_lists
from uturn.networks.state_dicts import fingerprint
from uturn.networks.texts.language import LanguageModel
from uturn.networks.texts.language_files import (
    Embedded,
    TransformersNetwork,
    architectures,
    is_causal,
    load_language_model,
    longest_call,
    network_from_function,
    own_tokenizer,
    read_config,
    read_weights,
    reason,
)
from uturn.networks.texts.tokenizers import Framed, Tokenizer, load_tokenizer

FORMS = "'module:function', a function without arguments that returns a torch.nn.Module that takes ids (batch, length)"
_CLASSES = {"encoder": "AutoModel", "causal": "AutoModelForCausalLM"}


@dataclass(frozen=True, eq=False)
class TextModel(Framed):
    """A network that reads texts.

    Attributes
    ----------
    module : nn.Module
        The network, whose modules are the layers.
    call : (ids, noise, real, **options) -> output
        `real`: int64 (batch, length), 0 where a text has ended; None for networks that take no padding.
    tokenizer : Tokenizer, optional
        None if the network reads the ids of the originals.
    length : int, optional
        Largest number of ids in a call.
    takes_padding : bool
        Whether texts of different lengths go into a call together.
    pad_id : int
    config : object, optional
        The configuration of a model of transformers. Such a model gives its hidden states itself.
    layers : str or tuple of str
        What is read by default.
    device : torch.device
    identity : str
        SHA-256 of the weights.
    name : str
    """

    module: nn.Module
    call: Callable[..., Any]
    tokenizer: Tokenizer | None = None
    length: int | None = None
    takes_padding: bool = False
    pad_id: int = 0
    config: Any = None
    layers: str | tuple[str, ...] = "every block"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    identity: str = ""
    name: str = ""

    def framed(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """Texts with prefix and suffix."""
        return [[*self.prefix, *row, *self.suffix] for row in rows]

    def batches(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
        """Rows of ids of any length as batches: the numbers of the rows, their ids and whether there is one.

        Ids and `real` are int64 and bool (rows, longest). A network that takes no padding has a batch for each length.
        """
        lengths = np.array([len(row) for row in rows])
        together = [np.arange(len(rows))] if self.takes_padding else [np.flatnonzero(lengths == n) for n in np.unique(lengths)]
        for numbers in together:
            ids = np.full((len(numbers), lengths[numbers].max()), self.pad_id, np.int64)
            for row, number in enumerate(numbers.tolist()):
                ids[row, : lengths[number]] = rows[number]
            real = np.arange(ids.shape[1]) < lengths[numbers, None]
            yield numbers, torch.from_numpy(ids).to(self.device), torch.from_numpy(real).to(self.device)

    def output(self, ids: torch.Tensor, real: torch.Tensor, **options: Any) -> Any:
        """What the network gives for a batch; `options` go to it."""
        clean = torch.zeros(len(ids), device=self.device)
        given = (ids, clean, real.long()) if self.takes_padding else (ids, clean)
        try:
            with torch.inference_mode():
                return self.call(*given, **options)
        except ValueError:
            raise
        except Exception as error:  # the code of a model can fail in any way
            if is_out_of_memory(error):
                raise MemoryError(f"not enough memory on {self.device} for {len(ids)} texts; lower batch_size") from None
            raise ValueError(
                f"model = {self.name!r} does not take ids of shape {tuple(ids.shape)} up to {int(ids.max())} "
                f"({one_line(error)[:300]}); check that it is a model of texts with these tokens"
            ) from error


def text_files(model: str, tokenizer: str | None = None) -> list[Path]:
    """Paths of the files of a model and its tokenizer, some of which may be names."""
    found: list[Path] = []
    for place in (Path(name) for name in (model, tokenizer) if name is not None):
        found += [*sorted(place.glob("*")), *sorted(place.glob("*/*.json"))] if place.is_dir() else [place]
    return found


def _files_of_model(
    model: str,
    head: Literal["encoder", "causal"] = "encoder",
    tokenizer: str | None = None,
    split: str | None = None,
    trust_remote_code: bool = False,
    dtype: str = "float32",
    device: str | None = None,
) -> list[Path]:
    return text_files(model, tokenizer)


@cached_while_unchanged(files=_files_of_model, maxsize=4)
def load_text_model(
    model: str,
    head: Literal["encoder", "causal"] = "encoder",
    tokenizer: str | None = None,
    split: str | None = None,
    trust_remote_code: bool = False,
    dtype: str = "float32",
    device: str | None = None,
) -> TextModel:
    """A network that reads texts.

    Parameters
    ----------
    model : str
        A folder, or the name of a model on a hub, that `AutoModel` of transformers reads; of a model with encoder and decoder the
        encoder is taken. "embedded", or a file of `uturn.networks` with a MaskedTransformer. Or "module:function", which gives a
        torch module that takes ids, with attributes `tokenizer` and `length` if it has them.
    head : str
        "encoder": hidden states; "causal": logits of the next token (`AutoModelForCausalLM`).
    tokenizer, split
        As in `load_tokenizer`; by default the tokenizer of the model.
    trust_remote_code : bool
        Whether code that comes with a model may run.
    dtype, device : str
        Precision of the network, and where it runs; by default "cuda" if available.

    Raises
    ------
    ValueError
        If the model or its tokenizer cannot be read, or do not fit each other.
    """
    where = f"model = {shown(model)}"
    if model == "embedded" or model.endswith(".safetensors"):
        if head == "causal":
            raise ValueError(f"{where} is a masked model; expected likelihood = 'masked'")
        return as_text_model(load_language_model(model, dtype=dtype, device=device), where)
    place = checked_device(device)
    if is_import_path(model):
        module, config = _own_module(model, where), None
        config = getattr(module, "config", None) if hasattr(module, "base_model") else None
        made = own_tokenizer(module, where)
        made = made if tokenizer is None else load_tokenizer(tokenizer, split, trust_remote_code)
        length = getattr(module, "length", None)
    else:
        config = read_config(model, where, trust_remote_code, FORMS)
        module = _pretrained(model, where, config, head, trust_remote_code)
        made = load_tokenizer(tokenizer or model, split, trust_remote_code)
        length = longest_call(config, made)
        _check_sizes(where, module, made)
    module = module.to(place, getattr(torch, dtype)).eval().requires_grad_(False)
    call = TransformersNetwork(module)
    return TextModel(
        module,
        call,
        made,
        length,
        call.takes_padding,
        next((k for k in (getattr(made, "pad_id", None), getattr(config, "pad_token_id", None)) if k is not None), 0),
        config,
        device=place,
        identity=fingerprint(module),
        name=model,
    )


def as_text_model(language: LanguageModel, where: str) -> TextModel:
    """A language model of a backward as a network that reads texts.

    Raises
    ------
    ValueError
        If it is no torch module, so that it has no layers.
    """
    network = language.network
    if not isinstance(network, nn.Module):
        raise ValueError(f"{where}: {language.description} is no torch module and has no layers; name another model (model)")
    module: Any = network
    call: Any = network.logits
    config, layers = None, "every block"
    if isinstance(network, TransformersNetwork):
        module = getattr(network.model, "base_model", network.model)
        call, config = TransformersNetwork(module), getattr(module, "config", None)
    elif isinstance(network, Embedded):
        module, layers = network.model, "blocks.*"
    return TextModel(
        module,
        call,
        language.tokenizer,
        language.length,
        getattr(call, "takes_padding", getattr(network, "takes_padding", False)),
        (None if language.tokenizer is None else language.tokenizer.pad_id) or 0,
        config,
        layers,
        language.device,
        language.identity,
        language.description,
    )


def kind_of(config: Any, where: str) -> Literal["causal", "masked"]:
    """Whether a model of transformers predicts the next token or masked ones.

    Raises
    ------
    ValueError
        If the configuration does not say it, or names another kind of model.
    """
    names = architectures(config)
    if any(name.endswith("ForMaskedLM") for name in names):
        return "masked"
    if any(map(is_causal, names)):
        return "causal"
    raise ValueError(
        f"{where}: {', '.join(names) or 'no architecture'} in its config.json; expected a model ..ForCausalLM or ..ForMaskedLM, "
        f"or likelihood = 'causal' or 'masked' for a model with code of its own"
    )


def _own_module(model: str, where: str) -> nn.Module:
    module = network_from_function(model, where, FORMS)
    if not isinstance(module, nn.Module):
        raise ValueError(f"{where} gives a {type(module).__name__}; expected {FORMS}")
    return module


def _pretrained(model: str, where: str, config: Any, head: str, trusted: bool) -> nn.Module:
    import transformers

    logging = transformers.utils.logging
    two = bool(getattr(config, "is_encoder_decoder", False))
    if two and head == "causal":
        raise ValueError(f"{where} has an encoder and a decoder; expected a causal or a masked model")
    try:
        with without_bars(logging), without_lists(logging):
            found, missing = read_weights(getattr(transformers, _CLASSES[head]), model, config, trusted)
    except Exception as error:
        raise ValueError(f"{where} cannot be read ({reason(error, trusted)})") from None
    # The pooler of an encoder and the decoder behind it are not read.
    missing = [key for key in missing if "pooler" not in key and not (two and key.startswith("decoder."))]
    if missing:
        raise ValueError(
            f"{where}: the weights {', '.join(missing[:3])} are missing; expected all weights of {type(found).__name__}"
        )
    return found.get_encoder() if two else found


def _check_sizes(where: str, module: nn.Module, tokenizer: Tokenizer) -> None:
    try:
        size = int(module.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    except (AttributeError, NotImplementedError, TypeError):  # code of its own
        return
    if tokenizer.size > size:
        raise ValueError(
            f"{where} has {size} tokens, but its tokenizer {tokenizer.size}; name the right one (tokenizer), or split texts into "
            f"the tokens of vocab.txt by a regular expression (split = 'smiles', 'characters', ..)"
        )
