"""Models converted to other groups: channel axes, forms, refitting."""
