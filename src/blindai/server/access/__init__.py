"""Who may do what: principals, what proves who they are, and what each may use.

`principal` has the nouns; `rules` what the operator set; `gate` decides about a request. One
module for each kind of proof: `keys` (API keys), `tokens` (JWT, with the key sets of `jwks`),
`certificates` (client certificates). `accounts` counts what a tenant uses, `lockout` what
somebody tries. Nothing here knows HTTP or gRPC.
"""
