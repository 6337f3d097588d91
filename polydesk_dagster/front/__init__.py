"""What programs outside ask over HTTP: the booking front end, and whoever shows the caches. No cookie counts here."""
