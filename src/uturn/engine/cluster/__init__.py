"""Tasks on a Ray cluster: the driver feeds workers, which are long-lived actors, and replaces workers that die.

A run calls `driver.on_cluster`; `workers` starts, feeds and replaces the workers; `bundles` chooses the tasks of a worker and
identifies failing tasks; `worker` measures them; `connection` joins or starts Ray. The store is the only record of finished
tasks: workers read it before they measure.
"""

from uturn.engine.cluster.connection import connected
from uturn.engine.cluster.driver import on_cluster

__all__ = ["connected", "on_cluster"]
