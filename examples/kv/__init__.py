"""A key-value service: one process is one Raft node with a Flask application beside it."""
