"""The SDK: verify a server, then use it, and nothing in another order.

`session` turns an address and a policy into a channel that ends at an attested key;
`client` (blocking) and `aio` (asyncio) send requests through such a channel only. What
is asked and understood is written once: `calls` (the verbs), `messages` (requests), `answers`,
`receipts` and `upload`. How it travels is written once as well: `outgoing` makes a request
bytes, `incoming` and `http1` take an answer apart; only who moves the bytes is there twice:
`transport` and `connection`, `aio_transport` and `aio_connection`. Many runs at once: `many`,
`aio_many`. Where to: `address`; what a failure means: `failures`.
"""
