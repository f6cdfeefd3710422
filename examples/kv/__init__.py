"""A key-value service: one process is one Raft node with a Flask application beside it.

A demonstration, for loopback: the peers talk without TLS, and everybody who reaches the HTTP port
may read and write all keys. Only who joins and leaves is protected, by a token.
"""
