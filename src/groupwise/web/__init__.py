"""The interactive page: change a convolution's numbers and see its pictures change."""
