"""Robin's mail queue: pages, actions, and the live feed of /ws/queue."""
