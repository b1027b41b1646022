"""gRPC services, admission, streams."""
