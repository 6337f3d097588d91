"""How what rules return is said: catalogues in Italian, English and German, and who renders them for each medium.

Every sentence that a person reads stands in ``locale/<language>/<room>.po`` under a stable name. Which things are said,
and when, is decided by the rules, in codes and values (``values``, ``outcome``); nothing here decides anything.
"""

from polydesk_dagster.told.catalogue import LANGUAGES, accepted
from polydesk_dagster.told.speaking import Teller, teller

__all__ = ["LANGUAGES", "Teller", "accepted", "teller"]
