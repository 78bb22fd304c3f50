"""The styles for `parallelize_module`: each says what a rank holds of one kind of layer and what it computes."""
