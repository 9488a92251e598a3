"""Candidate crystals: generators under one interface, guards, and the files they are written to."""
