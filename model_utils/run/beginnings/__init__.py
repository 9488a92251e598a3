"""How a run begins: with fresh weights, with another model's, or where a stored run stood."""
