"""What every test may ask for: a RabbitMQ, a MariaDB."""

pytest_plugins = ["tests.services.fixture", "tests.faults.plugin"]
