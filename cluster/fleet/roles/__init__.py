"""The roles as they run in a process of their own: a plain class each, no Ray.

One module a role, and nothing imported here: an expert node has no business with gRPC.
"""
