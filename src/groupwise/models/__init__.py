"""The networks that made groups famous."""
