"""Sources of originals: strings of a grammar, images, vectors of a solvable law, texts.

In a spec, `type` names the class, and the other keys are its arguments, which
`help(ut.sources.RHMSource)` lists:

    rhm               RHMSource              strings of random grammars
    grammar           GrammarSource          strings of a grammar in a file
    filtered_rhm      FilteredRHMSource      strings of random grammars without the structure above a level
    hmm               HiddenMarkovSource     strings of hidden Markov models
    fashion_mnist     FashionMNISTSource     the images of the package
    images            ImageFolderSource      images in a folder
    array             ArraySource            images in .npy files
    generated         GeneratedSource        images that the model of the backward draws
    gaussian_mixture  GaussianMixtureSource  vectors of a Gaussian mixture
    gaussian_field    GaussianFieldSource    vectors of a Gaussian random field
    tokens            TokenSource            texts, as tokens of the model of the backward

A source of one's own inherits from one of four classes and defines the members that are listed
with it. Everything else has a default.

- `StringSource`, strings: the values `vocab_size`, `depth`, `branching`, and grammar(number, seed)
- `ImageSource`, images: count(), images_at(indices), perhaps num_labels()
- `TextSource`, texts: texts(), perhaps labels() and separators()
- `ut.Source`, other data: blocks(items, seed, num_items), perhaps coordinates(seed, num_items)
"""

from __future__ import annotations

from uturn.core.lazy import lazy
from uturn.sources.generated import GeneratedSource as GeneratedSource
from uturn.sources.images import ArraySource as ArraySource
from uturn.sources.images import FashionMNISTSource as FashionMNISTSource
from uturn.sources.images import ImageFolderSource as ImageFolderSource
from uturn.sources.images import Images as Images
from uturn.sources.images import ImageSource as ImageSource
from uturn.sources.strings import FilteredRHMSource as FilteredRHMSource
from uturn.sources.strings import GrammarSource as GrammarSource
from uturn.sources.strings import HiddenMarkovSource as HiddenMarkovSource
from uturn.sources.strings import RHMSource as RHMSource
from uturn.sources.strings import Strings as Strings
from uturn.sources.strings import StringSource as StringSource
from uturn.sources.tokens import TextSource as TextSource
from uturn.sources.tokens import Tokens as Tokens
from uturn.sources.tokens import TokenSource as TokenSource
from uturn.sources.vectors import GaussianFieldSource as GaussianFieldSource
from uturn.sources.vectors import GaussianMixtureSource as GaussianMixtureSource
from uturn.sources.vectors import Vectors as Vectors

__getattr__, __dir__, _HOMES = lazy(__name__, {})
