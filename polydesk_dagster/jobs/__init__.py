"""Services that keep no asset: one job each, named after the service."""
