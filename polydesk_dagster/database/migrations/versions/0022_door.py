"""Who may come through the door: credentials, sessions, links that work once, attempts, and clinics beside one's own.

Revision ID: 0022
"""

from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

DOOR = """
-- Whoever acts for the whole chain, not for the clinics that are named; a superuser always does.
ALTER TABLE app_user ADD COLUMN whole_chain boolean NOT NULL DEFAULT false
    CHECK (NOT whole_chain OR role IN ('manager', 'superuser'));

-- Clinics that a person acts for beside the one of the account.
CREATE TABLE app_user_clinic (
    user_id   bigint NOT NULL REFERENCES app_user ON DELETE CASCADE,
    clinic_id bigint NOT NULL REFERENCES clinic,
    PRIMARY KEY (user_id, clinic_id)
);

CREATE TABLE user_password (
    user_id bigint PRIMARY KEY REFERENCES app_user ON DELETE CASCADE,
    hash    text NOT NULL CHECK (hash LIKE '$argon2id$%'),
    set_at  timestamptz NOT NULL
);

-- Who one is at the identity provider; bound at the first login, kept when the address changes.
CREATE TABLE user_identity (
    issuer   text NOT NULL,
    subject  text NOT NULL,
    user_id  bigint NOT NULL REFERENCES app_user ON DELETE CASCADE,
    bound_at timestamptz NOT NULL,
    PRIMARY KEY (issuer, subject)
);
CREATE UNIQUE INDEX user_identity_user ON user_identity (user_id, issuer);

-- Only the token's hash is kept: who reads the table can be nobody.
CREATE TABLE web_session (
    token_hash bytea PRIMARY KEY CHECK (octet_length(token_hash) = 32),
    user_id    bigint NOT NULL REFERENCES app_user ON DELETE CASCADE,
    way        text NOT NULL CHECK (way IN ('password', 'link', 'activation', 'oidc')),
    opened_at  timestamptz NOT NULL,
    seen_at    timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    ended_at   timestamptz,
    CHECK (seen_at >= opened_at AND expires_at > opened_at)
);
CREATE INDEX web_session_user ON web_session (user_id);
CREATE INDEX web_session_expires ON web_session (expires_at);

-- A link that works once: it lets its user in, or lets her choose a password.
CREATE TABLE login_link (
    token_hash bytea PRIMARY KEY CHECK (octet_length(token_hash) = 32),
    user_id    bigint NOT NULL REFERENCES app_user ON DELETE CASCADE,
    purpose    text NOT NULL CHECK (purpose IN ('enter', 'password')),
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    used_at    timestamptz,
    voided_at  timestamptz
);
CREATE UNIQUE INDEX login_link_live ON login_link (user_id, purpose) WHERE used_at IS NULL AND voided_at IS NULL;

-- Every attempt, written before the password is looked at, so that attempts side by side count each other.
CREATE TABLE login_attempt (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account   bytea NOT NULL CHECK (octet_length(account) = 32),
    address   text NOT NULL,
    at        timestamptz NOT NULL,
    succeeded boolean NOT NULL DEFAULT false
);
CREATE INDEX login_attempt_account ON login_attempt (account, at);
CREATE INDEX login_attempt_address ON login_attempt (address, at);

-- What is remembered while somebody is at the identity provider, for the browser that went there.
CREATE TABLE oidc_journey (
    token_hash bytea PRIMARY KEY CHECK (octet_length(token_hash) = 32),
    state      jsonb NOT NULL,
    expires_at timestamptz NOT NULL
);
"""


def upgrade() -> None:
    op.execute(DOOR)
