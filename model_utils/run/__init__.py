"""A training: its order of events, its loop, its state."""
