"""What assets and jobs are handed: the only place, with the settings, that reads this installation's configuration."""
