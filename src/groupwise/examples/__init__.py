"""Holds programs to run and to read, such as `torchrun --nproc-per-node 2 -m groupwise.examples.train`."""
