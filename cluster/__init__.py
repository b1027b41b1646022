"""moemesh: serve Mixture-of-Experts language models from a fleet of small CPU machines."""

__version__ = "0.1.0"
