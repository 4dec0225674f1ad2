"""Files: written whole, checked when they are read."""
