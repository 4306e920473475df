"""The engine: `run`, and the measurement, planning and distribution of the tasks of an
experiment.
"""
