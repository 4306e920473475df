"""Drawing: one look for all figures, trees, images, and the map of the theory."""
