"""A pipeline of commands: which stages there are, what decides their
results, what is kept of each.
"""
