"""What a run writes, and how a file survives."""
