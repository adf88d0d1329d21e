"""Base models: how they are loaded, adapted and, for the embedded one, made."""
