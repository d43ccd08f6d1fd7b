"""What client and server share: the keyset, pinned TLS, and what is signed with its keys."""
