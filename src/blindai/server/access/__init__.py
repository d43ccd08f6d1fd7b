"""Who may do what: principals, what proves who they are, and what each may use.

`Access(token)` is the simple case: one token opens everything, and anybody may run and list.
With `AccessRules` it also knows API keys, JWTs, client certificates and tenants.

`principal` has the nouns; `rules` what the operator set; `gate` decides about a request. One
module for each kind of proof: `keys` (API keys), `tokens` (JWT, with the key sets of `jwks`),
`certificates` (client certificates). `accounts` counts what a tenant uses, `lockout` what
somebody tries. Nothing here knows HTTP or gRPC.
"""

from __future__ import annotations

from blindai.server.access.gate import Access, generate_token
from blindai.server.access.principal import OPERATOR, Presented, Principal, Scope
from blindai.server.access.rules import AccessRules

__all__ = [
    "OPERATOR",
    "Access",
    "AccessRules",
    "Presented",
    "Principal",
    "Scope",
    "generate_token",
]
