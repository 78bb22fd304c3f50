"""Pictures: SVG, PNG, HTML and text, made of plain strings from a `ConvSpec` and its cost."""
