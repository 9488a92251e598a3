"""Entry scripts and what they share: options, model building and loading, the loop,
evaluation, files, reports.
"""
