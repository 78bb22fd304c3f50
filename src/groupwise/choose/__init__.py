"""Choosing groups for a model: exact conversion, dense layers made grouped, sweeps and choices, tuning afterwards."""
