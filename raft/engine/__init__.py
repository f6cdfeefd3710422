"""What all roles share: inbox, state, log, disk, membership, receivers, replication."""
