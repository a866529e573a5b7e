"""The public pages of an installation: health, metrics, documents."""
