"""The factory texts. Variables are Italian, because whoever customises a text at the desk reads them.

Neutral variants serve sensitive services: they name neither the service nor the specialist.
"""

from __future__ import annotations

from typing import NamedTuple


class Factory(NamedTuple):
    """One factory template; ``subject`` only for e-mail."""

    kind: str
    variant: str
    channel: str
    language: str
    subject: str | None
    body: str


_LIST_IT = """{% for a in appuntamenti %}- ore {{ a.ora }}{% if a.iniziali %} ({{ a.iniziali }}){% endif %}: \
{{ a.prestazione }}{% if a.specialista %}, {{ a.specialista }}{% endif %}{% if a.sede %}, {{ a.sede }}{% endif %}
{% endfor %}"""
_LIST_DE = """{% for a in appuntamenti %}- {{ a.ora }} Uhr{% if a.iniziali %} ({{ a.iniziali }}){% endif %}: \
{{ a.prestazione }}{% if a.specialista %}, {{ a.specialista }}{% endif %}{% if a.sede %}, {{ a.sede }}{% endif %}
{% endfor %}"""
_NEUTRAL_IT = (
    "{% for a in appuntamenti %}- ore {{ a.ora }}{% if a.iniziali %} ({{ a.iniziali }}){% endif %}\n{% endfor %}"
)
_NEUTRAL_DE = (
    "{% for a in appuntamenti %}- {{ a.ora }} Uhr{% if a.iniziali %} ({{ a.iniziali }}){% endif %}\n{% endfor %}"
)
_TIMES = "{% for a in appuntamenti %}{{ ', ' if not loop.first }}{{ a.ora }}{% if a.iniziali %} ({{ a.iniziali }})\
{% endif %}{% endfor %}"
_SERVICES = "{% for a in appuntamenti %}{{ '; ' if not loop.first }}{{ a.ora }}{% if a.iniziali %} ({{ a.iniziali }})\
{% endif %} {{ a.prestazione }}{% endfor %}"
_SERVICES_DE = _SERVICES.replace("{{ a.ora }}", "{{ a.ora }} Uhr")
_FOOT_IT = _FOOT_DE = "\n{{ clinica }}\n{% if telefono %}Tel. {{ telefono }}\n{% endif %}"

_ANSWER_IT = """{% if risposte %}. Risponda 1 per confermare, 2 per disdire\
{% elif telefono %}. Per disdire: {{ telefono }}{% endif %}{% if collegamento %} {{ collegamento }}{% endif %}"""
_ANSWER_DE = """{% if risposte %}. Antworten Sie 1 zum Bestätigen, 2 zum Absagen\
{% elif telefono %}. Absagen: {{ telefono }}{% endif %}{% if collegamento %} {{ collegamento }}{% endif %}"""
_LINK_IT = "{% if collegamento %}\nPer confermare, disdire o chiedere un altro orario:\n{{ collegamento }}\n{% endif %}"
_LINK_DE = (
    "{% if collegamento %}\nBestätigen, absagen oder um eine andere Zeit bitten:\n{{ collegamento }}\n{% endif %}"
)
_LINK = "{% if collegamento %} {{ collegamento }}{% endif %}"

_BOOKED_IT = "{{ 'il suo appuntamento è spostato' if spostato else 'abbiamo prenotato per lei' }}"
_BOOKED_DE = "{{ 'verschoben' if spostato else 'gebucht' }}"

_CALL = "{% if telefono %} Tel. {{ telefono }}{% endif %}"
_DOCUMENT_IT = "un {{ 'documento di ' if iniziali else 'suo documento' }}{{ iniziali }}"
_DOCUMENT_DE = "ein Dokument für {{ iniziali or 'Sie' }}"

FACTORY: tuple[Factory, ...] = (
    Factory(
        *("reminder", "plain", "sms", "it", None),
        "{{ clinica }}: {{ nome }}, le ricordiamo l'appuntamento di {{ giorno }}, ore " + _SERVICES + _ANSWER_IT,
    ),
    Factory(
        *("reminder", "neutral", "sms", "it", None),
        "{{ clinica }}: {{ nome }}, le ricordiamo l'appuntamento di {{ giorno }}, ore " + _TIMES + _ANSWER_IT,
    ),
    Factory(
        *("reminder", "plain", "email", "it", "Promemoria: appuntamento di {{ giorno }}"),
        "Gentile {{ nome }},\n\nle ricordiamo l'appuntamento di {{ giorno }}:\n\n"
        + _LIST_IT
        + "\nSe non può venire, ci avvisi: qualcun altro potrà usare quell'orario.\n"
        + _LINK_IT
        + _FOOT_IT,
    ),
    Factory(
        *("reminder", "neutral", "email", "it", "Promemoria: appuntamento di {{ giorno }}"),
        "Gentile {{ nome }},\n\nle ricordiamo l'appuntamento di {{ giorno }}:\n\n"
        + _NEUTRAL_IT
        + "\nSe non può venire, ci avvisi: qualcun altro potrà usare quell'orario.\n"
        + _LINK_IT
        + _FOOT_IT,
    ),
    Factory(
        *("reminder", "plain", "sms", "de", None),
        "{{ clinica }}: {{ nome }}, wir erinnern an Ihren Termin am {{ giorno }}, " + _SERVICES_DE + _ANSWER_DE,
    ),
    Factory(
        *("reminder", "neutral", "sms", "de", None),
        "{{ clinica }}: {{ nome }}, wir erinnern an Ihren Termin am {{ giorno }}, " + _TIMES + " Uhr" + _ANSWER_DE,
    ),
    Factory(
        *("reminder", "plain", "email", "de", "Erinnerung: Termin am {{ giorno }}"),
        "Guten Tag {{ nome }},\n\nwir erinnern Sie an Ihren Termin am {{ giorno }}:\n\n"
        + _LIST_DE
        + "\nFalls Sie verhindert sind, geben Sie uns bitte Bescheid.\n"
        + _LINK_DE
        + _FOOT_DE,
    ),
    Factory(
        *("reminder", "neutral", "email", "de", "Erinnerung: Termin am {{ giorno }}"),
        "Guten Tag {{ nome }},\n\nwir erinnern Sie an Ihren Termin am {{ giorno }}:\n\n"
        + _NEUTRAL_DE
        + "\nFalls Sie verhindert sind, geben Sie uns bitte Bescheid.\n"
        + _LINK_DE
        + _FOOT_DE,
    ),
    Factory(
        *("preparation", "plain", "sms", "it", None),
        "{{ clinica }}: {{ nome }}, per l'appuntamento di {{ giorno }}"
        "{% for a in appuntamenti %}{{ ', ore' if loop.first else ' Ore' }} {{ a.ora }}"
        "{% if a.iniziali %} ({{ a.iniziali }}){% endif %}: {{ a.preparazione }}{% endfor %}" + _CALL,
    ),
    Factory(
        *("preparation", "neutral", "sms", "it", None),
        "{{ clinica }}: {{ nome }}, l'appuntamento di {{ giorno }}, ore "
        + _TIMES
        + ", richiede una preparazione. Ci chiami per le istruzioni{% if telefono %}: {{ telefono }}{% endif %}"
        + "{% if collegamento %}. Conferma o disdetta: {{ collegamento }}{% endif %}",
    ),
    Factory(
        *("preparation", "plain", "email", "it", "Come prepararsi all'appuntamento di {{ giorno }}"),
        "Gentile {{ nome }},\n\nper l'appuntamento di {{ giorno }} è necessaria una preparazione:\n\n"
        "{% for a in appuntamenti %}Ore {{ a.ora }}{% if a.iniziali %} ({{ a.iniziali }}){% endif %}, "
        "{{ a.prestazione }}:\n{{ a.preparazione }}\n\n{% endfor %}"
        "Per qualunque dubbio ci chiami.\n" + _FOOT_IT,
    ),
    Factory(
        *("preparation", "neutral", "email", "it", "Il suo appuntamento di {{ giorno }}"),
        "Gentile {{ nome }},\n\nl'appuntamento di {{ giorno }} richiede una preparazione. "
        "Ci chiami per le istruzioni.\n" + _FOOT_IT,
    ),
    Factory(
        *("preparation", "plain", "sms", "de", None),
        "{{ clinica }}: {{ nome }}, zu Ihrem Termin am {{ giorno }}"
        "{% for a in appuntamenti %}{{ ',' if loop.first }} {{ a.ora }} Uhr"
        "{% if a.iniziali %} ({{ a.iniziali }}){% endif %}: {{ a.preparazione }}{% endfor %}" + _CALL,
    ),
    Factory(
        *("preparation", "neutral", "sms", "de", None),
        "{{ clinica }}: {{ nome }}, Ihr Termin am {{ giorno }}, "
        + _TIMES
        + " Uhr, erfordert eine Vorbereitung. Bitte rufen Sie uns an{% if telefono %}: {{ telefono }}{% endif %}"
        + "{% if collegamento %}. Zusagen oder absagen: {{ collegamento }}{% endif %}",
    ),
    Factory(
        *("preparation", "plain", "email", "de", "Vorbereitung auf Ihren Termin am {{ giorno }}"),
        "Guten Tag {{ nome }},\n\nfür Ihren Termin am {{ giorno }} ist eine Vorbereitung nötig:\n\n"
        "{% for a in appuntamenti %}{{ a.ora }} Uhr{% if a.iniziali %} ({{ a.iniziali }}){% endif %}, "
        "{{ a.prestazione }}:\n{{ a.preparazione }}\n\n{% endfor %}"
        "Bei Fragen rufen Sie uns bitte an.\n" + _FOOT_DE,
    ),
    Factory(
        *("preparation", "neutral", "email", "de", "Ihr Termin am {{ giorno }}"),
        "Guten Tag {{ nome }},\n\nIhr Termin am {{ giorno }} erfordert eine Vorbereitung. "
        "Bitte rufen Sie uns an.\n" + _FOOT_DE,
    ),
    Factory(
        *("confirmation", "plain", "sms", "it", None),
        "{{ clinica }}: {{ nome }}, " + _BOOKED_IT + ": {{ giorno }}, ore " + _SERVICES + "." + _CALL + _LINK,
    ),
    Factory(
        *("confirmation", "neutral", "sms", "it", None),
        "{{ clinica }}: {{ nome }}, " + _BOOKED_IT + ": {{ giorno }}, ore " + _TIMES + "." + _CALL + _LINK,
    ),
    Factory(
        *("confirmation", "plain", "email", "it", "Prenotazione di {{ giorno }}"),
        "Gentile {{ nome }},\n\n" + _BOOKED_IT + ", {{ giorno }}:\n\n" + _LIST_IT + _LINK_IT + _FOOT_IT,
    ),
    Factory(
        *("confirmation", "neutral", "email", "it", "Prenotazione di {{ giorno }}"),
        "Gentile {{ nome }},\n\n" + _BOOKED_IT + ", {{ giorno }}:\n\n" + _NEUTRAL_IT + _LINK_IT + _FOOT_IT,
    ),
    Factory(
        *("confirmation", "plain", "sms", "de", None),
        "{{ clinica }}: {{ nome }}, Ihr Termin ist "
        + _BOOKED_DE
        + ": {{ giorno }}, "
        + _SERVICES_DE
        + "."
        + _CALL
        + _LINK,
    ),
    Factory(
        *("confirmation", "neutral", "sms", "de", None),
        "{{ clinica }}: {{ nome }}, Ihr Termin ist "
        + _BOOKED_DE
        + ": {{ giorno }}, "
        + _TIMES
        + " Uhr."
        + _CALL
        + _LINK,
    ),
    Factory(
        *("confirmation", "plain", "email", "de", "Termin am {{ giorno }}"),
        "Guten Tag {{ nome }},\n\nIhr Termin ist "
        + _BOOKED_DE
        + ", {{ giorno }}:\n\n"
        + _LIST_DE
        + _LINK_DE
        + _FOOT_DE,
    ),
    Factory(
        *("confirmation", "neutral", "email", "de", "Termin am {{ giorno }}"),
        "Guten Tag {{ nome }},\n\nIhr Termin ist "
        + _BOOKED_DE
        + ", {{ giorno }}:\n\n"
        + _NEUTRAL_DE
        + _LINK_DE
        + _FOOT_DE,
    ),
    *(
        Factory(
            *("cancel_question", variant, "sms", "it", None),
            "{{ clinica }}: vuole davvero disdire l'appuntamento di {{ giorno }}, ore "
            + _TIMES
            + "? Risponda 2 per disdire, 1 per tenerlo.",
        )
        for variant in ("plain", "neutral")
    ),
    *(
        Factory(
            *("cancel_question", variant, "sms", "de", None),
            "{{ clinica }}: Möchten Sie den Termin am {{ giorno }}, "
            + _TIMES
            + " Uhr, wirklich absagen? Antworten Sie 2 zum Absagen, 1 zum Behalten.",
        )
        for variant in ("plain", "neutral")
    ),
    *(
        Factory(
            *("cancellation", variant, "sms", "it", None),
            "{{ clinica }}: l'appuntamento di {{ giorno }}, ore " + _TIMES + ", è disdetto." + _CALL,
        )
        for variant in ("plain", "neutral")
    ),
    *(
        Factory(
            *("cancellation", variant, "sms", "de", None),
            "{{ clinica }}: Der Termin am {{ giorno }}, " + _TIMES + " Uhr, ist abgesagt." + _CALL,
        )
        for variant in ("plain", "neutral")
    ),
    *(
        Factory(
            *("cancellation", variant, "email", "it", "Disdetto: appuntamento di {{ giorno }}"),
            "Gentile {{ nome }},\n\nl'appuntamento di {{ giorno }} è disdetto:\n\n" + listed + _FOOT_IT,
        )
        for variant, listed in (("plain", _LIST_IT), ("neutral", _NEUTRAL_IT))
    ),
    *(
        Factory(
            *("cancellation", variant, "email", "de", "Abgesagt: Termin am {{ giorno }}"),
            "Guten Tag {{ nome }},\n\nIhr Termin am {{ giorno }} ist abgesagt:\n\n" + listed + _FOOT_DE,
        )
        for variant, listed in (("plain", _LIST_DE), ("neutral", _NEUTRAL_DE))
    ),
    Factory(
        *("activation", "plain", "email", "it", "Attivi il suo account {{ clinica }}"),
        "Gentile {{ nome }},\n\nper entrare in Polydesk apra questo indirizzo entro {{ giorni }} giorni e scelga una "
        "password:\n\n{{ collegamento }}\n\nL'indirizzo vale una volta sola e sostituisce quelli ricevuti prima.\n"
        + _FOOT_IT,
    ),
    Factory(
        *("activation", "plain", "email", "de", "Aktivieren Sie Ihr Konto bei {{ clinica }}"),
        "Guten Tag {{ nome }},\n\nöffnen Sie binnen {{ giorni }} Tagen diese Adresse und wählen Sie ein Passwort:\n\n"
        "{{ collegamento }}\n\nDie Adresse gilt nur einmal und ersetzt alle früheren.\n" + _FOOT_DE,
    ),
    Factory(
        *("verification_nudge", "plain", "sms", "it", None),
        "{{ clinica }}: la prenotazione di {{ giorno }} non è ancora confermata. La confermi entro le {{ scadenza }} "
        "dal messaggio ricevuto, o l'orario tornerà libero.",
    ),
    Factory(
        *("verification_nudge", "plain", "email", "it", "Confermi la prenotazione di {{ giorno }}"),
        "La prenotazione di {{ giorno }} non è ancora confermata. La confermi entro le {{ scadenza }} dal messaggio "
        "ricevuto, o l'orario tornerà libero.\n" + _FOOT_IT,
    ),
    Factory(
        *("verification_nudge", "plain", "sms", "de", None),
        "{{ clinica }}: Ihre Buchung am {{ giorno }} ist noch nicht bestätigt. Bitte bestätigen Sie sie bis "
        "{{ scadenza }} Uhr, sonst wird der Termin frei.",
    ),
    Factory(
        *("verification_nudge", "plain", "email", "de", "Bestätigen Sie Ihre Buchung am {{ giorno }}"),
        "Ihre Buchung am {{ giorno }} ist noch nicht bestätigt. Bitte bestätigen Sie sie bis {{ scadenza }} Uhr, "
        "sonst wird der Termin frei.\n" + _FOOT_DE,
    ),
    Factory(
        *("report_ready", "plain", "sms", "it", None),
        "{{ clinica }}: {{ nome }}, " + _DOCUMENT_IT + " è pronto. Può ritirarlo online o in sede." + _CALL,
    ),
    Factory(
        *("report_ready", "plain", "email", "it", "Un suo documento è pronto"),
        "Gentile {{ nome }},\n\n" + _DOCUMENT_IT + " è pronto: può ritirarlo online o in sede.\n" + _FOOT_IT,
    ),
    Factory(
        *("report_ready", "plain", "sms", "de", None),
        "{{ clinica }}: {{ nome }}, " + _DOCUMENT_DE + " liegt bereit, online oder bei uns." + _CALL,
    ),
    Factory(
        *("report_ready", "plain", "email", "de", "Ein Dokument liegt für Sie bereit"),
        "Guten Tag {{ nome }},\n\n" + _DOCUMENT_DE + " liegt bereit, online oder bei uns.\n" + _FOOT_DE,
    ),
    Factory(
        *("service_notice", "plain", "sms", "it", None),
        "{{ clinica }}: {{ nome }}, {{ avviso }}{% if collegamento %} Per accettare: {{ collegamento }}{% endif %}"
        "{% if telefono %} Per informazioni: {{ telefono }}{% endif %}",
    ),
    Factory(
        *("service_notice", "plain", "email", "it", "Avviso da {{ clinica }}"),
        "Gentile {{ nome }},\n\n{{ avviso }}\n{% if collegamento %}\nPer accettare: {{ collegamento }}\n{% endif %}"
        + _FOOT_IT,
    ),
    Factory(
        *("service_notice", "plain", "sms", "de", None),
        "{{ clinica }}: {{ nome }}, {{ avviso }}{% if collegamento %} Annehmen: {{ collegamento }}{% endif %}"
        "{% if telefono %} Auskunft: {{ telefono }}{% endif %}",
    ),
    Factory(
        *("service_notice", "plain", "email", "de", "Mitteilung von {{ clinica }}"),
        "Guten Tag {{ nome }},\n\n{{ avviso }}\n{% if collegamento %}\nAnnehmen: {{ collegamento }}\n{% endif %}"
        + _FOOT_DE,
    ),
)
