"""The sub-commands of `dropforge`, one module a family, loaded only when asked for."""
