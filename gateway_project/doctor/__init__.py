"""`manage.py doctor`: is this installation set up well, and what to do where it is not."""
