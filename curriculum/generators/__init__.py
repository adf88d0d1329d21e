"""Seeded generators of training rows: one module a skill, the same seed gives the same bytes."""
