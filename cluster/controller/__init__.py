"""The controller: membership and the placement table."""
