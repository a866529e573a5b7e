"""A stand-in of the Robin mail server: its two HTTP servers, with their oddities.

`make run` and the tests talk to it over HTTP with the gateway's real client. It is never active
where `ROBIN_CLIENT_API_URL` or `ROBIN_SERVICE_API_URL` name a real Robin.
"""
