"""Probes: comparisons of originals with reconstructions, one reading for each level of the hierarchy."""

from __future__ import annotations

from uturn.core.protocols import Probe as Probe
from uturn.probes.changes import Changes
from uturn.probes.network_layers import NetworkLayers
from uturn.probes.nodes import TreeNodes
from uturn.probes.orders import OrderConsistency, OrderLikelihood
from uturn.probes.perceptual import Perceptual
from uturn.probes.pictures import KeepImages
from uturn.probes.posterior import Posterior
from uturn.probes.repetition import Repetition
from uturn.probes.scales import Scales
from uturn.probes.text_class import TextClass
from uturn.probes.text_encoder import TextEncoder
from uturn.probes.text_layers import TextLayers
from uturn.probes.text_likelihood import TextLikelihood
from uturn.probes.tokens import KeepTokens, KeptTokens
from uturn.probes.tree import Messages, ParsedLevels, TreeLevels
