"""What must be fast, measured beside its peers in one run: `make bench`."""
