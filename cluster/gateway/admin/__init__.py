"""What operators may ask of the cluster through a gateway."""
