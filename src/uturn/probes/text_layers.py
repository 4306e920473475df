"""The probe of the hidden states of texts in a second model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from uturn.core.files import cached_while_unchanged
from uturn.core.protocols import UTurns, Variable
from uturn.probes.second_model import SecondModel, TextsOf

if TYPE_CHECKING:
    from uturn.probes.text_states import TextStates


class TextLayers(SecondModel):
    """Similarity of the hidden states of texts in a network, layer by layer (`uturn.probes.text_states.TextStates`).

    Options. `model`: "same", the model of the backward; a folder or the name of a model on a hub, any encoder or causal model
    that `AutoModel` of transformers reads; "embedded"; or "module:function", which returns a torch module that takes ids.
    `layers`: names or patterns of modules, by default "every block". `reference`: number of originals over which channels are
    standardised. All others: `SecondModel`; `name` is also a prefix of the dim `text_layer`.

    Variables. `text_similarity`: cosine of the standardised states averaged over tokens. `token_similarity`: cosine of the
    states of a token, averaged over tokens; only if both models have the same tokens, since otherwise positions do not
    correspond. Both are 1 for equal texts, and NaN where a reconstruction has no token of the model, or more than it takes.
    """

    type: Literal["text_layers"] = "text_layers"
    model: str = "same"
    layers: tuple[str, ...] | None = None
    reference: int = Field(default=256, ge=1)

    def variables(self, source: Any) -> dict[str, Variable]:
        dims = ("noise", "item", "trajectory", f"{self.prefix}text_layer")
        shares = text_states_of(self, source).texts.shares_tokens
        why = "" if shares else " (no token_similarity: the tokens of the models differ)"
        every = {
            "text_similarity": f"cosine similarity of standardised hidden states, averaged over tokens{why}",
            "token_similarity": "cosine similarity of standardised hidden states of a token, mean over tokens",
        }
        names = list(every) if shares else ["text_similarity"]
        groups = {"text_similarity": "layers", "token_similarity": "tokens in layers"}
        read_as: dict[str, Any] = {"start": 1, "bounds": (-1, 1), "order": dims[-1], "symmetric": True}
        return {f"{self.prefix}{name}": Variable(dims, every[name], group=groups[name], **read_as) for name in names}

    def coordinates(self, source: Any) -> dict[str, Any]:
        return {f"{self.prefix}text_layer": np.array(text_states_of(self, source).layers)}

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        found = text_states_of(self, source).read(u_turns.originals.data, u_turns.reconstructions, u_turns.clones)
        named = {"text_similarity": found.text, "token_similarity": found.token}
        twins = {"text_similarity": found.clone_text, "token_similarity": found.clone_token}
        readings = {f"{self.prefix}{name}": values for name, values in named.items() if values is not None}
        return readings | {f"clone_{self.prefix}{name}": values for name, values in twins.items() if values is not None}

    def network_calls(self, items: int, draws: int, clones: int, source: Any) -> int:
        return text_states_of(self, source).calls(items, draws, clones)


def _files(spec: TextLayers, source: Any) -> list[Path]:
    return [*spec.files(), *source.files()]


@cached_while_unchanged(files=_files)
def text_states_of(spec: TextLayers, source: Any) -> TextStates:
    """The hidden states of a spec, standardised over originals of the source.

    Raises
    ------
    ValueError
        If there is no such model or layer, or if its tokens do not fit the texts.
    """
    from uturn.networks.texts.models import as_text_model
    from uturn.probes.text_states import TextStates

    where = f"model = {spec.model!r}"
    model = as_text_model(source.language(), where) if spec.model == "same" else spec.loaded()
    texts = TextsOf(source, model, where)
    reference = source.ids(np.arange(min(spec.reference, source.count())))
    return TextStates(model, texts, reference, spec.layers, spec.batch_size)
