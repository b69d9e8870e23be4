"""The store: the only truth. SQLAlchemy lives here and nowhere else."""
