"""The laboratory: traces, the simulator, sweeps over policies and their reports.

Policies are those of cluster/balance, which the live cluster runs. Needs the extra `experiments`.
"""
