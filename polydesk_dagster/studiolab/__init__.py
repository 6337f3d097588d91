"""What studiolab says and what it means to us."""
