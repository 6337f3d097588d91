"""More of what people call examinations and visits. They were written knowing every question of the receptionist's set,
both halves of it: what that set measures since is no proof for words that nobody has asked with yet.

Revision ID: 0055
"""

from alembic import op

revision = "0055"
down_revision = "0054"
branch_labels = None
depends_on = None

LAY_WORDS = """
INSERT INTO knowledge_lay_word (lay, clinical)
SELECT lay, unnest(string_to_array(clinical, ', ')) FROM (VALUES
    ('risonanza', 'rm'), ('risonanza magnetica', 'rm'), ('tac', 'tc'), ('lastra', 'rx, radiografia'),
    ('lastre', 'rx, radiografia'), ('raggi', 'rx, radiografia'), ('radiografia', 'rx'), ('radiografie', 'rx'),
    ('rx', 'radiografia'), ('eco', 'ecografia, ecocolordoppler'), ('ecografia', 'eco'),
    ('ecocardiogramma', 'dopplergrafia cardiaca, ecocolordopplergrafia cardiaca'),
    ('ecocardio', 'dopplergrafia cardiaca'), ('ecocardiografia', 'dopplergrafia cardiaca'),
    ('doppler', 'ecocolordoppler, dopplergrafia'), ('ecodoppler', 'ecocolordoppler, dopplergrafia'),
    ('gastroscopia', 'esofagogastroduodenoscopia, egds'), ('videocapsula', 'microcamera ingeribile, enteroscopia'),
    ('capsula', 'microcamera ingeribile'), ('cistoscopia', 'uretrocistoscopia'),
    ('moc', 'densitometria ossea, dxa'), ('mineralometria', 'densitometria ossea, dxa'),
    ('osteoporosi', 'densitometria ossea'), ('panoramica', 'ortopanoramica'),
    ('ortopantomografia', 'ortopanoramica'),
    ('holter', 'elettrocardiogramma dinamico, monitoraggio continuo pressione'),
    ('holter cardiaco', 'elettrocardiogramma dinamico'), ('holter pressorio', 'monitoraggio continuo pressione'),
    ('prova da sforzo', 'test cardiovascolare da sforzo, cicloergometro'), ('cyclette', 'cicloergometro'),
    ('prova del respiro', 'spirometria'), ('apnee', 'monitoraggio cardiorespiratorio notturno, polisonnografia'),
    ('apnea', 'monitoraggio cardiorespiratorio notturno, polisonnografia'), ('elettromiografia', 'emg'),
    ('tunnel carpale', 'elettromiografia arto superiore'), ('schiena', 'rachide, colonna, lombosacrale'),
    ('colonna', 'rachide'), ('ernia del disco', 'rachide, lombosacrale'), ('cervicale', 'rachide cervicale'),
    ('seno', 'mammella, mammaria, mammografia'), ('seni', 'mammella, mammaria, mammografia'), ('petto', 'torace'),
    ('polmoni', 'torace'), ('costole', 'scheletro costale'), ('testa', 'cranio, encefalo, capo'),
    ('cervello', 'encefalo, encefalico'), ('pancia', 'addome'),
    ('stomaco', 'gastrico, gastrica, esofagogastroduodenoscopia'), ('fegato', 'addome superiore, epatico'),
    ('reni', 'renale, nefrologica'), ('gamba', 'arto inferiore'), ('gambe', 'arti inferiori, arto inferiore'),
    ('braccia', 'arti superiori, arto superiore'), ('braccio', 'arto superiore'), ('anca', 'coxofemorale'),
    ('ossa', 'ossea, osseo, ortopedica'), ('denti', 'dentarie, dentaria, arcate, odontostomatologica'),
    ('dente', 'dentaria, endorale'), ('occhi', 'oculistica'), ('occhio', 'oculare, fundus, oculistica'),
    ('fondo dell occhio', 'fundus'), ('occhiali', 'oculistica, visus'), ('retina', 'oct, fundus'),
    ('vista', 'visus, oculistica'), ('orecchie', 'audiometrico, auricolare, acufenometria'),
    ('fischi', 'acufenometria'), ('acufeni', 'acufenometria'), ('udito', 'audiometrico, audiologica'),
    ('naso', 'rinomanometria'), ('gola', 'oro faringeo, faringeo'), ('nei', 'dermatologica, lesioni cutanee'),
    ('pelle', 'cute, cutanee, dermatologica'), ('testicoli', 'scrotale'), ('utero', 'ginecologica'),
    ('carotidi', 'tronchi sovraaortici'), ('vene', 'venoso'), ('varici', 'venoso'),
    ('vescica', 'uretrocistoscopia'), ('prostata', 'psa, prostatico, transrettale'),
    ('cuore', 'cardiaca, cardiologica'), ('coronarie', 'coronarografia'), ('cardiologo', 'cardiologica'),
    ('dermatologo', 'dermatologica'), ('oculista', 'oculistica'),
    ('otorino', 'otorinolaringoiatria, otorinolaringoiatrica'), ('ortopedico', 'ortopedica'),
    ('urologo', 'urologica'), ('andrologo', 'andrologica'), ('ginecologo', 'ginecologica'),
    ('ginecologa', 'ginecologica'), ('neurologo', 'neurologica'), ('nefrologo', 'nefrologica'),
    ('gastroenterologo', 'gastroenterologica'), ('endocrinologo', 'endocrinologica'),
    ('diabetologo', 'endocrinologica'), ('pneumologo', 'pneumologica'), ('allergologo', 'allergologica'),
    ('oncologo', 'oncologica'), ('fisiatra', 'medicina fisica riabilitazione'), ('angiologo', 'angiologica'),
    ('chirurgo plastico', 'chirurgica plastica'), ('chirurgo', 'chirurgica'), ('dentista', 'odontostomatologica'),
    ('anestesista', 'anestesiologica'), ('genetista', 'genetica'), ('gravidanza', 'ostetrica, ostetrico, hcg'),
    ('incinta', 'ostetrica, hcg'), ('morfologica', 'ostetrica morfologica'),
    ('pap test', 'prelievo citologico, ginecologica'), ('acido folico', 'folato, folati'), ('folati', 'folato'),
    ('vitamina b9', 'folato'), ('vitamina b12', 'cobalamina, vit b12'), ('vitamina del sole', 'vitamina d'),
    ('zuccheri', 'glucosio, glicemia'), ('zucchero', 'glucosio, glicemia'), ('glicemia', 'glucosio'),
    ('diabete', 'glucosio, emoglobina glicata'), ('emoglobina glicosilata', 'emoglobina glicata'),
    ('glicata', 'emoglobina glicata'), ('curva glicemica', 'glucosio dosaggio seriale dopo carico'),
    ('curva da carico', 'glucosio dosaggio seriale dopo carico'), ('curva', 'dopo carico'),
    ('transaminasi', 'alt, ast, got, gpt, aminotransferasi'), ('acido urico', 'urato, uricemia'),
    ('gotta', 'urato, acido urico'), ('azotemia', 'urea'), ('clearance', 'creatinina clearance'),
    ('colesterolo cattivo', 'colesterolo ldl'), ('colesterolo buono', 'colesterolo hdl'),
    ('grassi', 'trigliceridi, colesterolo'), ('tiroide', 'tireotropina, tsh, tiroxina, tireoglobulina'),
    ('tiroidite', 'tireoperossidasi, tireoglobulina'), ('hashimoto', 'tireoperossidasi, tireoglobulina'),
    ('perossidasi', 'tireoperossidasi'), ('marcatore', 'antigene'), ('marcatori', 'antigene'),
    ('marker', 'antigene'), ('ovaio', 'ca 125'), ('ovaie', 'ca 125, ginecologica'),
    ('pancreas', 'pancreatica, ca 19 9'), ('sangue occulto', 'feci sangue occulto'),
    ('sangue nascosto', 'sangue occulto'), ('urine', 'urina, urinocoltura'), ('bruciore', 'urinocoltura'),
    ('cistite', 'urinocoltura'), ('coltura', 'esame colturale'), ('tampone', 'essudato, secreto, esame colturale'),
    ('tampone vaginale', 'secreto vaginale'), ('streptococco', 'oro faringeo'),
    ('ossiuri', 'enterobius vermicularis'), ('vermi', 'enterobius vermicularis, parassiti'),
    ('scotch test', 'enterobius vermicularis'), ('batterio dello stomaco', 'helicobacter pylori'),
    ('lattosio', 'breath test lattosio'), ('latte', 'lattosio'), ('respiro', 'breath test, spirometria'),
    ('celiachia', 'transglutaminasi, endomisio, gliadina'), ('glutine', 'transglutaminasi, endomisio, gliadina'),
    ('spermiogramma', 'liquido seminale'), ('seme', 'liquido seminale'),
    ('sperma', 'liquido seminale, spermiogramma'), ('fertilita', 'liquido seminale, anti mulleriano'),
    ('riserva ovarica', 'anti mulleriano'), ('ormone della crescita', 'somatotropo'),
    ('ormone dello stress', 'cortisolo'), ('ormone maschile', 'testosterone'), ('ormoni maschili', 'testosterone'),
    ('ormoni femminili', 'estradiolo, progesterone'), ('estrogeni', 'estradiolo'), ('estrogeno', 'estradiolo'),
    ('paratiroideo', 'paratormone, pth'), ('paratiroide', 'paratormone, pth'),
    ('antidiuretico', 'adiuretina, vasopressina'), ('ferro nel sangue', 'ferro'), ('sideremia', 'ferro'),
    ('riserve di ferro', 'ferritina'), ('emocromo', 'emocromocitometrico'),
    ('globuli', 'emocromo, emocromocitometrico, eritrociti'), ('ves', 'velocita sedimentazione'),
    ('pcr', 'proteina c reattiva'), ('infiammazione', 'proteina c reattiva, calprotectina'),
    ('gruppo sanguigno', 'abo'), ('coagulazione', 'protrombina, tromboplastina, fibrinogeno'),
    ('inr', 'protrombina'), ('coumadin', 'protrombina'), ('anticoagulante', 'protrombina'),
    ('ptt', 'tromboplastina parziale'), ('trombosi', 'd dimero, venoso'), ('infarto', 'troponina'),
    ('muscoli', 'creatina chinasi, cpk'), ('amilasi', 'alfa amilasi'), ('gamma gt', 'glutamiltransferasi'),
    ('ittero', 'bilirubina'), ('elettroforesi', 'proteine ematiche elettroforesi'), ('droga', 'sostanze d abuso'),
    ('droghe', 'sostanze d abuso'), ('antidroga', 'sostanze d abuso'), ('alcol', 'etanolo, transferrina desialata'),
    ('patente', 'transferrina desialata, etanolo'), ('microalbuminuria', 'albuminuria'),
    ('artrite reumatoide', 'citrullina, fattore reumatoide'), ('reumatoide', 'fattore reumatoide'),
    ('lupus', 'ana, anticorpi anti nucleo, dna nativo'),
    ('antifosfolipidi', 'cardiolipina, glicoproteina, lupus anticoagulant'),
    ('aborti', 'cardiolipina, lupus anticoagulant'), ('coombs', 'anti eritrocitari'),
    ('allergie', 'ige specifiche, allergologiche'), ('allergia', 'ige specifiche, allergologiche'),
    ('respiratorie', 'inalanti'), ('pollini', 'inalanti'), ('cibi', 'alimenti'),
    ('tubercolosi', 'micobatteri, ppd'), ('mantoux', 'ppd'), ('zecca', 'borrelia'), ('zecche', 'borrelia'),
    ('lyme', 'borrelia'), ('clamidia', 'chlamydia, chlamydie'), ('fibrosi cistica', 'test del sudore'),
    ('svenimenti', 'tilt test'), ('sonda', 'endoscopio'), ('telecamera', 'endoscopio'),
    ('prelievo di tessuto', 'biopsia')
) AS v (lay, clinical)
ON CONFLICT DO NOTHING;
"""


def upgrade() -> None:
    op.execute(LAY_WORDS)
