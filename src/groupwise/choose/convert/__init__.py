"""Layers converted to other `groups`, and what repairs them on calibration data."""
