"""What starts runs from the outside: news of studiolab, failed runs."""
