"""Tasks on a Ray cluster: a coordinator hands them out to workers, which are long-lived actors, and Ray notices who dies.

`driver.on_cluster` is what a run calls; `coordinator` decides which worker gets which tasks; `worker` measures them; `connection`
joins or starts Ray. The store is the only record of what is done: workers look there before they measure.
"""

from uturn.cluster.connection import connected
from uturn.cluster.driver import on_cluster

__all__ = ["connected", "on_cluster"]
