"""What a fleet can do with a model before anything of it runs. Pure: numbers in, numbers out."""
