"""Settings and plan: what the Snakefile imports, standard library alone."""
