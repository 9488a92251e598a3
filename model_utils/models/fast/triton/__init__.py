"""The sums of the fast step as Triton kernels for CUDA: texts made from a network's tables,
compiled at the start.
"""
