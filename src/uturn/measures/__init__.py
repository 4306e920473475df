"""Measures: tests and statistics of experiments, so far the calibration of posterior draws."""
