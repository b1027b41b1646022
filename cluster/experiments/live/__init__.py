"""Experiments on real clusters of this machine: real roles in processes of their own, real sockets."""
