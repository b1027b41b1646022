"""The router: scheduler, KV pages, the engine's loop."""
