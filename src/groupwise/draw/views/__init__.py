"""Pictures as SVG, one file each."""
