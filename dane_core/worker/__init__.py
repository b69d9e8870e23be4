"""What a worker author subclasses, and what serves it."""
