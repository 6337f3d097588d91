"""What a visit costs: the price in force on its day, the most particular one that there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

import sqlalchemy as sa


@dataclass(frozen=True, slots=True)
class Visit:
    """What is to be priced: a service, on an agenda, at an instant."""

    service_id: int
    agenda_id: int
    starts_at: datetime


# Under the agreement, else private; of this doctor, else of any; else what the service costs without a list. What the
# patient pays is her share where the price has one.
_QUOTED = sa.text("""
    SELECT coalesce(p.price, CASE WHEN CAST(:agreement AS bigint) IS NULL THEN v.price END)
    FROM unnest(CAST(:services AS bigint[]), CAST(:agendas AS bigint[]), CAST(:starts AS timestamptz[]))
         WITH ORDINALITY w (service, agenda, starts_at, place)
    JOIN service v ON v.id = w.service JOIN agenda a ON a.id = w.agenda JOIN clinic c ON c.id = a.clinic_id
    LEFT JOIN LATERAL (
        SELECT coalesce(b.patient_share, b.amount) AS price FROM price b
        WHERE b.service_id = v.id AND b.agreement_id IS NOT DISTINCT FROM :agreement
          AND (b.specialist_id IS NULL OR b.specialist_id = a.specialist_id)
          AND daterange(b.valid_from, b.valid_to) @> CAST(w.starts_at AT TIME ZONE c.time_zone AS date)
        ORDER BY b.specialist_id NULLS LAST LIMIT 1) p ON true
    ORDER BY w.place""")


def quoted(connection: sa.Connection, visits: Sequence[Visit], agreement_id: int | None) -> list[Decimal | None]:
    """In the order of ``visits``, what the patient pays, in euros; None where no price is in force. Under an agreement
    only its own prices count."""
    if not visits:
        return []
    given = {
        "agreement": agreement_id,
        "services": [each.service_id for each in visits],
        "agendas": [each.agenda_id for each in visits],
        "starts": [each.starts_at for each in visits],
    }
    return list(connection.scalars(_QUOTED, given))
