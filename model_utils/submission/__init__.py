"""Work of ours on clusters: what is sent, where it runs, how it comes back."""
