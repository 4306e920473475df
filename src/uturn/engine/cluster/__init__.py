"""Tasks on a Ray cluster: a coordinator hands them out to workers, which are long-lived actors, and Ray notices who dies.

`driver.on_cluster` is what a run calls; `coordinator` decides which worker gets which tasks; `worker` measures them; `connection`
joins or starts Ray. The store is the only record of what is done: workers look there before they measure.
"""

from uturn.engine.cluster.connection import connected
from uturn.engine.cluster.driver import on_cluster

__all__ = ["connected", "on_cluster"]
