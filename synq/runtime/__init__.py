"""Where and how a stage runs."""
