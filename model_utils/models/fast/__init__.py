"""The fast form of the network: mace's energies by an algebra made for differentiating
twice (see ``network.py``).
"""
