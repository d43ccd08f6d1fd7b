"""The SDK: verify a server, then use it, and nothing in another order.

`session` turns an address and a policy into a channel that ends at an attested key;
`client` (blocking) and `aio` (asyncio) send requests through such a channel only. What a
request looks like is written once, in `calls`, `messages` and `upload`; how it travels, in
`transport` and `http1`.
"""
