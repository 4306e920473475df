"""Probes: comparisons of originals with reconstructions, one reading for each level of the
hierarchy.

In a spec, `type` names the class, and the other keys are its arguments, which
`help(ut.probes.TreeLevels)` lists:

    tree_levels      TreeLevels      unchanged nodes of each tree level
    tree_nodes       TreeNodes       single nodes of the first trees, for a picture
    parsed_levels    ParsedLevels    unchanged nodes, with reconstructions parsed from their leaves
    messages         Messages        exact messages at the true symbols
    network_layers   NetworkLayers   similarity in the layers of a network, and its classes
    perceptual       Perceptual      perceptual distance of images
    images           KeepImages      the reconstructed images
    scales           Scales          similarity of vectors, scale by scale
    changes          Changes         covariances of the changes of two sites
    kept_tokens      KeptTokens      tokens of texts that are kept
    tokens           KeepTokens      the tokens of reconstructions
    text_layers      TextLayers      similarity of texts in the layers of a network
    text_encoder     TextEncoder     similarity of texts in a sentence encoder
    text_likelihood  TextLikelihood  likelihood of reconstructions under a second model
    text_class       TextClass       the predicted class of texts
    repetition       Repetition      entropy and repetition of tokens

A probe of one's own inherits from `ut.Probe` and defines `variables` and `read`. One that compares
two data by a symmetric function inherits from `Comparison` and defines `variables` and `compare`.
What a probe prepares for its source, it prepares in `bind`.
"""

from __future__ import annotations

from uturn.core.lazy import lazy
from uturn.core.protocols import Probe as Probe
from uturn.probes.changes import Changes as Changes
from uturn.probes.comparison import Comparison as Comparison
from uturn.probes.network_layers import NetworkLayers as NetworkLayers
from uturn.probes.perceptual import Perceptual as Perceptual
from uturn.probes.pictures import KeepImages as KeepImages
from uturn.probes.repetition import Repetition as Repetition
from uturn.probes.scales import Scales as Scales
from uturn.probes.texts import TextClass as TextClass
from uturn.probes.texts import TextEncoder as TextEncoder
from uturn.probes.texts import TextLayers as TextLayers
from uturn.probes.texts import TextLikelihood as TextLikelihood
from uturn.probes.tokens import KeepTokens as KeepTokens
from uturn.probes.tokens import KeptTokens as KeptTokens
from uturn.probes.tree import Messages as Messages
from uturn.probes.tree import ParsedLevels as ParsedLevels
from uturn.probes.tree import TreeLevels as TreeLevels
from uturn.probes.tree import TreeNodes as TreeNodes

__getattr__, __dir__, _HOMES = lazy(__name__, {})
