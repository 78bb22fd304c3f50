"""Programs to run and to read: `torchrun --nproc-per-node 2 -m groupwise.examples.train`."""
