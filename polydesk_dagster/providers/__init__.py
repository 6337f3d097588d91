"""The carriers of messages: the SMS gateway and the mail relay."""
