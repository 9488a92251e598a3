"""Options: declared once, read from command line, YAML and stored runs."""
