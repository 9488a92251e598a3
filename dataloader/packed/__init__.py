"""The project's own shards: written, split, described."""
