"""The store: the zarr record of a run, its resumption and extension, and its place on disk or
object storage.
"""
