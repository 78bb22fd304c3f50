"""What ranks do together beside the layers' own work: they agree on a model, and count the collectives of a step."""
