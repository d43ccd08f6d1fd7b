"""What a process gives up for good before it meets strangers: Linux's own means, without libraries.

Nothing here knows what BlindAI serves. A measure that the kernel does not have raises
`ConfigurationError`; whether to go on without it is for the caller to say.
"""
