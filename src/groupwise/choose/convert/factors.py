"""The form `factored`: a dense layer becomes a grouped one of the same kernel, and a 1x1 layer that mixes its groups."""
