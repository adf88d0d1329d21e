"""The room that trains: the arrow `queue -> trainer -> checkpoints`."""
