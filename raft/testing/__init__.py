"""What tests of Raft, of its parts and of programs that use it need."""

__all__: list[str] = []
