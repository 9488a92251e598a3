"""What any potential must obey, measured on a trained network: symmetries, slopes, the
cutoff, energy in time.
"""
