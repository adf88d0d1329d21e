"""The inference server: publisher -> inference server -> whoever asks. The only room that answers with tokens."""
