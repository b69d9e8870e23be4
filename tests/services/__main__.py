"""`python -m tests.services run -- COMMAND`: COMMAND with a RabbitMQ and a MariaDB of its own."""

import argparse
import os
import shlex
import subprocess
import sys

from tests.services.provider import AMQP_VARIABLE, MYSQL_VARIABLE, NoService, mariadb, rabbitmq
from tests.services.rabbitmq import CONTROL_VARIABLE


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.services", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="run")
    run = verbs.add_parser("run", help="run a command with both services")
    run.add_argument("command", nargs="+", metavar="COMMAND")
    command = parser.parse_args().command
    try:
        with rabbitmq() as virtual_host, mariadb() as mysql_url:
            named = {AMQP_VARIABLE: virtual_host.url, MYSQL_VARIABLE: mysql_url}
            if virtual_host.control:
                named[CONTROL_VARIABLE] = shlex.join(virtual_host.control)
            return subprocess.call(command, env={**os.environ, **named})
    except NoService as missing:
        print(missing, file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main())
