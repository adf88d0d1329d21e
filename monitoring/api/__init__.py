"""The JSON twins of the page's panels (read-only; beside all arrows)."""
