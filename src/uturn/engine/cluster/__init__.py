"""Tasks on a Ray cluster: the driver feeds workers, which are long-lived actors, and notices who dies.

`driver.on_cluster` is what a run calls; `workers` starts, feeds and replaces the workers; `bundles` decides which tasks a worker
gets, and which are to blame; `worker` measures them; `connection` joins or starts Ray. The store is the only record of what is
done: workers look there before they measure.
"""

from uturn.engine.cluster.connection import connected
from uturn.engine.cluster.driver import on_cluster

__all__ = ["connected", "on_cluster"]
