"""The expert node: a shard of experts, its memory budget, its server."""
