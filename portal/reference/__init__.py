"""The reference at `/docs`: the OpenAPI document, read for people. It is the only source."""
