"""The DANE server: stores jobs, sends their tasks, records what comes back."""
