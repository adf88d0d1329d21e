"""Dials of training: few are set, the rest are derived (see dials.py)."""
