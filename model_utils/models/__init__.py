"""From model.json to a network: the description (no torch), the builder and the networks; the only home of mace and e3nn."""
