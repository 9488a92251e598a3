"""Names of the files of a run that are the same in every run's folder."""

METRICS = "metrics.jsonl"  # one JSON object per record
LOG = "train.log"  # what the terminal shows, without the progress bar
SETTINGS = "config.resolved.yaml"  # every setting as it was used
RECORD = "run.json"  # what was asked, and every start, where runs have folders of their own
LATEST = "latest"  # of the folder of an experiment: leads to its newest run
LOCK = ".run.lock"  # held by the process that writes the run
