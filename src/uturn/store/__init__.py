"""The store: the zarr record of a run, how it is resumed and extended, and where it is kept."""
