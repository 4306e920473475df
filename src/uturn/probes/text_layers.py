"""The probe of the hidden states of texts in a second model."""

from __future__ import annotations

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

    Options. `model`: "same", the model of the backward; a folder or hub id of any encoder or causal model that transformers'
    `AutoModel` reads; "embedded"; or "module:function", which returns a torch module that takes ids. `layers`: names or patterns
    of modules, by default "every block". `reference`: number of originals over which channels are standardised. All other
    options: `SecondModel`; `name` is also a prefix of the dim `text_layer`.

    Variables. `text_similarity`: cosine of the standardised states averaged over tokens. `token_similarity`: cosine of the
    states of a token, averaged over tokens; only if both models have the same tokens, since otherwise positions do not
    correspond. Both are 1 for equal texts, and NaN where a reconstruction has no tokens, or too many for the model.
    """

    type: Literal["text_layers"] = "text_layers"
    model: str = "same"
    layers: tuple[str, ...] | None = None
    reference: int = Field(default=256, ge=1)

    def variables(self, source: Any) -> dict[str, Variable]:
        dims = ("noise", "item", "trajectory", f"{self.prefix}text_layer")
        read_as: dict[str, Any] = {"start": 1, "bounds": (-1, 1), "order": dims[-1], "symmetric": True}
        long_name = "cosine similarity of standardised hidden states"
        if not text_states_of(self, source).texts.shares_tokens:
            long_name += ", averaged over tokens (no token_similarity: the tokens of the models differ)"
            return self.prefixed({"text_similarity": Variable(dims, long_name, group="layers", **read_as)})
        text = Variable(dims, f"{long_name}, averaged over tokens", group="layers", **read_as)
        token = Variable(dims, f"{long_name} of a token, mean over tokens", group="tokens in layers", **read_as)
        return self.prefixed({"text_similarity": text, "token_similarity": token})

    def coordinates(self, source: Any) -> dict[str, Any]:
        return {f"{self.prefix}text_layer": np.array(text_states_of(self, source).layers)}

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        states = text_states_of(self, source)
        return self.prefixed(*states.read(u_turns.originals.data, u_turns.reconstructions, u_turns.clones))


@cached_while_unchanged()
def text_states_of(spec: TextLayers, source: Any) -> TextStates:
    """The hidden states of a spec, standardised over originals of the source.

    Raises
    ------
    ValueError
        If there is no such model or layer, or if its tokens do not match the texts.
    """
    from uturn.probes.text_states import TextStates

    where = f"model = {spec.model!r}"
    model = source.language().encoder() if spec.model == "same" else spec.text_model.load()
    texts = TextsOf(source, model, where)
    reference = source.ids(np.arange(min(spec.reference, source.count())))
    return TextStates(model, texts, reference, spec.layers, spec.batch_size)
