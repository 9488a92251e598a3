"""What a run says of its settings, data and machine, and goes on."""
