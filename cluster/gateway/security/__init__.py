"""Who may use the gateway: API keys and their limits, TLS."""
