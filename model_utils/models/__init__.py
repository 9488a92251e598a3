"""From model.json to a network: description, builder and networks; the only
home of mace and e3nn.
"""
