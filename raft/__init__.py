"""A threaded, synchronous Raft library with the API of hashicorp/raft."""
