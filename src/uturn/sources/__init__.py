"""Sources of originals: strings of a grammar, images, vectors of a solvable law, texts."""

from __future__ import annotations

from uturn.core.lazy import lazy
from uturn.sources.generated import GeneratedSource
from uturn.sources.images import ArraySource, FashionMNISTSource, ImageFolderSource
from uturn.sources.images import Images as Images
from uturn.sources.strings import FilteredRHMSource, GrammarSource, HiddenMarkovSource, RHMSource
from uturn.sources.strings import Strings as Strings
from uturn.sources.tokens import Tokens as Tokens
from uturn.sources.tokens import TokenSource
from uturn.sources.vectors import GaussianFieldSource, GaussianMixtureSource
from uturn.sources.vectors import Vectors as Vectors

__getattr__, __dir__, _HOMES = lazy(__name__)
