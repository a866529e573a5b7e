"""Robin's settings, Robin UI's documents, and the scanners."""
