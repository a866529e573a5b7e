"""As `core/language.py` has them for our own pages. What is not here is Django's."""

DATE_FORMAT = "j M Y"
DATETIME_FORMAT = "j M Y H:i:s"
TIME_FORMAT = "H:i:s"
