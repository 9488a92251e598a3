"""Several processes that compute one run: which of them this one is, what they add
together, how they leave.
"""
