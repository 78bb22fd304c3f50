"""Choosing `groups` for a model: what a conversion keeps, what it costs, and which layers to convert."""
