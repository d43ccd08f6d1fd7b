"""The Open Inference Protocol over gRPC, on an HTTP/2 of our own.

Why not grpcio: it brings a second TLS (BoringSSL, without a way to refuse TLS 1.2) into the
enclave, and answers a fifth as many small requests; docs/adr/0008 has the numbers. What is here
is what gRPC needs of HTTP/2 and no more: no push, no priorities, no CONNECT.

From the wire inwards: `hpack` and `frames` know bytes, `connection` the rules and limits of a
connection, `call` one RPC on it, `inference` and `introspection` the services, and `listener` the
port. `messages` holds the protobuf classes, in a pool of their own.
"""
