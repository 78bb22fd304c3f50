"""The same layer with other groups, or in another library's layout: exact, without data."""
