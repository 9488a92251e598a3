"""The data of a run: from options to data sets, and what the log and the checkpoint say of them."""
