"""The daemon: the one process that takes files in, starts the others and says what is going on."""
