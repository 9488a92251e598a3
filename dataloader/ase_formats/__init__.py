"""Files that programs and ASE write, among those that ase.io reads: a named list, each looked
at before it is on it.
"""
