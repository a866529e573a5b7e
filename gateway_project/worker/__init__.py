"""What a Celery worker of the gateway has beyond Celery's own."""
