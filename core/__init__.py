"""Shared by every room: torch-free, imports no other room."""
