"""The assistant's door: what documents say, for a program that talks with people, over HTTP and over MCP.

Both ask one function (``knowledge.assistant``); for which clinic and in which role is the token's, never the caller's.
"""
