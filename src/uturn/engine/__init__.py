"""The engine: `run` and what measures, plans and distributes the tasks of an experiment."""
