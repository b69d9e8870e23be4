"""What the documents are tried with: the services of the stories."""

from tests.stories.conftest import real, services

__all__ = ["real", "services"]
