"""The only importer of ray: actors, launch, supervision."""
