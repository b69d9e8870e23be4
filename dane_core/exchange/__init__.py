"""Carries messages between server and workers: RabbitMQ, or in process. One contract."""
