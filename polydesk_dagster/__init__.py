"""The engine behind Polydesk's *Impostazioni → Servizi*."""
