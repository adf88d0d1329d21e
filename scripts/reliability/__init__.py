"""Runners that break Dropforge on purpose and print what they counted. `make prove` runs their long forms."""
