"""Reports: what happened, what it did to the model, and what to do about it (beside all arrows; reads, never acts)."""
