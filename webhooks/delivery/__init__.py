"""From an event's row to the receiver's answer."""
