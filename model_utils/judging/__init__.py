"""What generated crystals are worth: energies above the hull, duplicates, novelty, under
the names of MatterGen.
"""
