"""Measures: tests and statistics of experiments: calibration of posterior draws, correlated
changes.
"""
