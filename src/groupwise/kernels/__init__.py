"""The native core seen from Python: what is built, what is dispatched to it, and what it plans."""
