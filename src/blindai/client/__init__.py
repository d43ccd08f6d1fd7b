"""The SDK: verify a server, then use it, and nothing in another order.

`session` turns an address and a policy into a channel that ends at an attested key;
`client` (blocking) and `aio` (asyncio) send requests through such a channel only. What
is asked and understood is written once: `calls` (the verbs), `messages` (requests), `answers`
and `upload`. How it travels: `transport`, `connection` and `http1`; where to: `address`; what a
failure means: `failures`.
"""
