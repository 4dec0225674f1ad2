"""Real images, and transforms of batches."""
