"""Grouped convolution layers: `torch.nn` ones that can explain themselves."""
