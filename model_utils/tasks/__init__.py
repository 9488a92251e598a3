"""What the commands do: a whole run, descriptions, checks, conversions, comparisons."""
