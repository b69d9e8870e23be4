"""RabbitMQ as an exchange, over aio-pika.

aio-pika's robust connections bring the wire back. What is on it, exchanges, queues, bindings
and consumers, is restored here and not by aio-pika's robust channels: those restore everything
or nothing, so that one queue that now exists with other arguments would take down the
connection of all the others, again and again.

Two connections, because RabbitMQ blocks one that publishes while it is short of memory or disk,
and results must still be consumed then. Two facts of the library shape this room: a lost
connection may surface as `CancelledError` in a task that nobody cancelled, and a consumer
callback is cancelled together with its channel, so callbacks only enqueue.
"""

from dane_core.exchange.amqp.exchange import AmqpExchange, connect

__all__ = ["AmqpExchange", "connect"]
