"""From files to flat-array batches: readers, labels, neighbour lists, packing
and the loader's workers.
"""
