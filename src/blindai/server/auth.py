"""Who may do what, in short: one token opens everything, and anybody may run and list.

`Access(token)` is the simple case; with `AccessRules` it also knows API keys, JWTs, client
certificates and tenants. `blindai.server.access` has the parts.
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
