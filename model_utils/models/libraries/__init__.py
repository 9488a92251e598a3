"""Networks of other libraries than mace-torch: what model.json says of them, and one
adapter around each library.
"""
