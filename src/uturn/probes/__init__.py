"""Probes: comparisons of originals with reconstructions, one reading for each level of the hierarchy."""

from __future__ import annotations

from uturn.core.lazy import lazy
from uturn.core.protocols import Probe as Probe
from uturn.probes.changes import Changes
from uturn.probes.network_layers import NetworkLayers
from uturn.probes.perceptual import Perceptual
from uturn.probes.pictures import KeepImages
from uturn.probes.repetition import Repetition
from uturn.probes.scales import Scales
from uturn.probes.texts import TextClass, TextEncoder, TextLayers, TextLikelihood
from uturn.probes.tokens import KeepTokens, KeptTokens
from uturn.probes.tree import Messages, ParsedLevels, TreeLevels, TreeNodes

__getattr__, __dir__, _HOMES = lazy(__name__)
