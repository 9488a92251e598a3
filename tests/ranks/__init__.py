"""Runs of several processes: the same bits as one, whatever happens to one of them."""
