"""What watch.py shows: runs by their records, while they are written, cut,
continued and replaced.
"""
