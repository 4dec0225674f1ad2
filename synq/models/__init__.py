"""Full-precision networks: where they come from and what layers they have."""
