"""The server: attested port, unattested port, and what stands behind both.

A newcomer's way through: `run` puts everything together; `app` is HTTP without content;
`attested` and `public` are the two ports' paths; `open_inference` translates the protocol;
`service` is what every protocol calls; `identity` holds the keys; `protocol` keeps the
limits that have to be kept before an application sees a request.
"""
