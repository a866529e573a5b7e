"""Operators' pages of the Robin mail server: queue, actions, mail store, log, charts, alerts."""
