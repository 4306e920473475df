"""What is computed from results: calibration of posterior draws."""
