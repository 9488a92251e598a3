"""The arithmetic of ``metadata.py check``: does a data set mean what it should?
Nothing here opens a file.
"""
