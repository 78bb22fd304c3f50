"""Decides how a network is split, and tells what that costs, before any process group exists."""
