"""The gateway before the real Robin and the real Robin UI: `make robin-real`, docs/robin-real.md.

Builds both from checkouts, fills Robin's queue, lets it deliver to a sink, and checks what the
gateway makes of it. Nothing here is imported by the gateway.
"""
