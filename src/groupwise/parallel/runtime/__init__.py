"""What runs on the ranks of a process group: collectives, the count of them, and the ranks' agreement on a model."""
