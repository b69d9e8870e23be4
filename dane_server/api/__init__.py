"""HTTP: translates between JSON and the runner and reader, and nothing more."""
