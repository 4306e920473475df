"""Probes: comparisons of originals with reconstructions, one reading for each level of the hierarchy."""

from __future__ import annotations

from uturn.core.protocols import Probe as Probe
from uturn.probes.changes import Changes
from uturn.probes.network_layers import NetworkLayers
from uturn.probes.nodes import TreeNodes
from uturn.probes.perceptual import Perceptual
from uturn.probes.pictures import KeepImages
from uturn.probes.scales import Scales
from uturn.probes.text_encoder import TextEncoder
from uturn.probes.text_layers import TextLayers
from uturn.probes.text_likelihood import TextLikelihood
from uturn.probes.tokens import KeepTokens, KeptTokens
from uturn.probes.tree import Messages, ParsedLevels, TreeLevels

PROBES: dict[str, type] = {
    "tree_levels": TreeLevels,
    "tree_nodes": TreeNodes,
    "parsed_levels": ParsedLevels,
    "messages": Messages,
    "network_layers": NetworkLayers,
    "images": KeepImages,
    "scales": Scales,
    "changes": Changes,
    "perceptual": Perceptual,
    "kept_tokens": KeptTokens,
    "tokens": KeepTokens,
    "text_layers": TextLayers,
    "text_encoder": TextEncoder,
    "text_likelihood": TextLikelihood,
}
