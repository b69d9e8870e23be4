"""RabbitMQ and MariaDB for tests and benchmarks: found, started or installed; see `provider`.

In tests: the fixtures of `tests.services.fixture`. Elsewhere:

    python -m tests.services run -- COMMAND

runs COMMAND with DANE_TEST_AMQP_URL and DANE_TEST_MYSQL_URL set to a virtual host and a database
of its own. Test processes it starts, several at once too, make themselves further ones there.
"""
