"""The HTTP side of the gateway: OpenAI's dialect, health and metrics, on the gateway's own loop."""
