"""What people look at: reports of evaluations, curves of runs, and the statistics
behind their intervals.
"""
