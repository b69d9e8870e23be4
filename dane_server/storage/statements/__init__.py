"""The questions the store is asked when something changes, a module for each part of the story."""
