"""`moemesh bench gateway`: open-loop load on a gateway, and what the gateway itself costs."""
