"""Chaos with a checker: random faults on a live cluster under load, a history of both, its judgement."""
