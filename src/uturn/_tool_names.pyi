"""Names that tools add to `uturn`; `python -m uturn.core.tools` writes this file."""

from uturn.tools.audit.judge import audit as audit
from uturn.tools.audit.orders import order_discrepancy as order_discrepancy
from uturn.tools.chains.chain import chain as chain
from uturn.tools.chains.measures import relaxation as relaxation
from uturn.tools.chains.measures import reversibility as reversibility
from uturn.tools.chains.measures import to_arviz as to_arviz
from uturn.tools.chains.parts import MaskedLeaves as MaskedLeaves
from uturn.tools.check_knob.check import check_knob as check_knob
from uturn.tools.check_sampler.check import check_sampler as check_sampler
from uturn.tools.check_sampler.two_samplers import two_samplers as two_samplers
from uturn.tools.inverse.judge import inverse as inverse
from uturn.tools.inverse.posteriors import posterior_tests as posterior_tests
