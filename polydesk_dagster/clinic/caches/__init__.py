"""Lists that browsers load first, kept ready as versioned documents. A booking decision never reads one.

How they are served over HTTP is ``front.caches``; which numbers managers see is ``clinic.statistics``.
"""
