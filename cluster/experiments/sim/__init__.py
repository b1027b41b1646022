"""A cluster that is computed instead of run: discrete events, the policies of cluster/balance."""
