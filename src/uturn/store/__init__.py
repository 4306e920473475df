"""Stored runs: a folder with one file a task, how it is resumed and extended, and where it lies."""
