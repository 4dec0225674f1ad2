"""What Python programs and notebooks call; ``synq`` itself has the names."""
