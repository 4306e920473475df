"""Neural networks: the networks of this package with their training, networks of other
libraries, and their files.

`images/` has diffusion models, `texts/` language models and their tokenizers, `strings/` denoisers
of strings of a grammar; the modules beside them have classifiers, layers and training. A network of
one's own is a function without arguments, named "module:function" in a spec. It returns a
`DenoiserModel` for images, a `TokenNetwork` for texts, and a torch module for probes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uturn.core.lazy import lazy

if TYPE_CHECKING:
    from uturn.networks.files import load_network as load_network
    from uturn.networks.files import save_network as save_network
    from uturn.networks.images.own_denoisers import DenoiserModel as DenoiserModel
    from uturn.networks.images.own_denoisers import edm_schedule as edm_schedule
    from uturn.networks.texts.language import LanguageModel as LanguageModel
    from uturn.networks.texts.language import TokenNetwork as TokenNetwork
    from uturn.networks.texts.language_files import load_language_model as load_language_model
    from uturn.networks.texts.tokenizers import PretrainedTokenizer as PretrainedTokenizer
    from uturn.networks.texts.tokenizers import Vocabulary as Vocabulary


_NAMES = {
    "uturn.networks.files": ["load_network", "save_network"],
    "uturn.networks.images.own_denoisers": ["DenoiserModel", "edm_schedule"],
    "uturn.networks.texts.language": ["LanguageModel", "TokenNetwork"],
    "uturn.networks.texts.language_files": ["load_language_model"],
    "uturn.networks.texts.tokenizers": ["PretrainedTokenizer", "Vocabulary"],
}
"""{module: its public names}, imported on first use. Type checkers read the same above."""
__getattr__, __dir__, _HOMES = lazy(__name__, _NAMES)
