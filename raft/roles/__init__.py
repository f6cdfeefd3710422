"""The three role loops: follower, candidate, leader."""
